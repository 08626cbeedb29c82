"""Loads what every command writes in two versions of transformers, and compares them.

    python benchmarks/folder_versions.py --older PYTHON [--families mistral llama]

`--older` is the Python of an environment with transformers 4.57; this one has version 5. The
folders of `pretrain export`, `pretrain average`, `finetune sft`, `finetune dpo` and `model
remap_vocab` are made from a model of two layers of each family, whose RoPE base, scaling and window
are not the defaults. Compared are logits, frequencies of RoPE, windows, ids of odd lines, special
tokens, the rendered chat template and the ids that end generation.

The results of the other families are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from conf.terminal import silence_torchao
from model.families import FAMILIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/folder_versions.json"
PROBE = r"""
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.set_verbosity_error()
lines = ["def f(x):\n\treturn x", "Grüße, 日本語 🎉", "  a\r\nb ", "<s>x</s>", "it's  12345"]
chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(3, 99)[None] % model.config.vocab_size
    with torch.no_grad():
        logits = model(ids).logits[0, ::7].flatten().tolist()
    rotary = [part for name, part in model.named_buffers() if name.endswith("inv_freq")]
    print(json.dumps({
        "version": transformers.__version__,
        "logits": logits,
        "rope": sorted({tuple(round(one, 10) for one in part.tolist()) for part in rotary}),
        "window": getattr(model.config, "sliding_window", None),
        "ids": [tokenizer(line).input_ids for line in lines],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "text": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
        "end": model.generation_config.eos_token_id,
        "dtype": str(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype),
    }))
"""
"""Prints what one version of transformers reads in each folder, as one line of JSON."""
EXACT = ("rope", "window", "ids", "special", "text", "end", "dtype")
"""Keys that both versions must read in the same way; logits may differ by rounding."""


def main() -> None:
    """Makes the folders of each family, reads them in both versions, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--older", required=True, help="Python with transformers 4.57")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    silence_torchao()
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known_to_older = classes(options.older)
    figures["unknown"] = [family for family in FAMILIES if family not in known_to_older]
    for family in options.families:
        if family in figures["unknown"]:
            print(f"{family}: the older version has no class for it", flush=True)
            continue
        with tempfile.TemporaryDirectory() as name:
            folders = dict(made(family, Path(name)))
            read = [probe(python, folders) for python in (options.older, sys.executable)]
        rows = {writer: compared(*(found[writer] for found in read)) for writer in folders}
        print(family, json.dumps(rows), flush=True)
        figures["versions"] = [next(iter(found.values()))["version"] for found in read]
        known = figures.get("families", {}) | {family: rows}
        figures["families"] = {one: known[one] for one in FAMILIES if one in known}
        figures["machine"] = machine()
        write_results(RESULTS, figures, table(figures))


def made(family: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the name of each command that writes a folder, and its folder."""
    from tests.corpora import byte_tokenizer, make_corpus
    from tests.family_path import FamilyPath

    corpus = make_corpus(folder / "corpus")
    path = FamilyPath(family, folder, corpus, lambda *words, processes=0: run(*words))
    run(*path.training("run", stop_after=2, checkpoint__every_steps=1))
    base = folder / "base"
    run("pretrain", "export", f"run={folder / 'run'}", f"out={base}")
    yield "pretrain export", base
    average = folder / "average"
    run("pretrain", "average", f"run={folder / 'run'}", f"out={average}")
    yield "pretrain average", average
    rows = [{"prompt": f"Say {word}.", "completion": f"{word}!"} for word in "abcd"]
    pairs = [{"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in "abcd"]
    for command, data in (("sft", rows), ("dpo", pairs)):
        file = folder / f"{command}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in data))
        out = folder / command
        settings = ("max_steps=1", "device=cpu", "precision=fp32", "batch_size=2")
        run("finetune", command, f"model={base}", f"data={file}", f"out={out}", *settings)
        yield f"finetune {command}", out
    turned = folder / "turned"
    turned.mkdir()
    byte_tokenizer(turned=True).save(str(turned / "tokenizer.json"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    (turned / "tokenizer_config.json").write_text(json.dumps(special))
    out = folder / "remapped"
    run("model", "remap_vocab", f"model={base}", f"tokenizer={turned}", f"out={out}")
    yield "model remap_vocab", out


def classes(python: str) -> list[str]:
    """Returns the model types that an environment has a class for."""
    code = "from transformers.models.auto import configuration_auto as c; "
    code += "print(*c.CONFIG_MAPPING_NAMES)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the project, and prints its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 85):  # 85: stopped where asked
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done


def probe(python: str, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Returns what an environment reads in each folder."""
    done = subprocess.run(
        [python, "-c", PROBE, *map(str, folders.values())], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{python} cannot read the folders:\n{done.stderr}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(folders, lines, strict=True))


def compared(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Returns the largest difference of the logits, and what is read differently."""
    gaps = [abs(a - b) for a, b in zip(older["logits"], newer["logits"], strict=True)]
    size = max(map(abs, newer["logits"]))
    different = {key: [older[key], newer[key]] for key in EXACT if older[key] != newer[key]}
    return {"logits": max(gaps) / size, "different": different}


def table(figures: dict[str, Any]) -> str:
    """Returns a row per family with a cell per command."""
    older, newer = figures["versions"]
    families: list[dict[str, Any]] = list(figures["families"].values())
    most = max(families, key=len)
    writers = list(most)
    text = [
        f"Folders of every command, read by transformers {older} and {newer}: the largest relative "
        "difference of the logits. RoPE, window, token ids, special tokens, chat template, end of "
        "generation and dtype are equal, unless a cell names them. "
        f"{described(figures['machine'])}.",
        "",
        f"| family | {' | '.join(writers)} |",
        "|---" * (len(writers) + 1) + "|",
    ]
    for family, rows in figures["families"].items():
        found = [rows.get(writer) for writer in writers]
        cells = [
            ", ".join([f"{one['logits']:.0e}", *one["different"]]) if one else "not run"
            for one in found
        ]
        text.append(f"| `{family}` | {' | '.join(cells)} |")
    for family in figures["unknown"]:
        text.append(f"| `{family}` | cannot: {older} has no class for it |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    main()
