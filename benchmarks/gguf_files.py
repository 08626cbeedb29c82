"""Compares models in llama.cpp and vLLM with the same in transformers: perplexity, greedy text.

    pip install -c constraints.txt -e ".[gguf]"
    python benchmarks/gguf_files.py name=FOLDER [name=FOLDER ...] [--tokens 256] [--vllm PYTHON]

Each folder is written as f32, q8_0 and q4_0 for llama.cpp. Perplexity is that of pages of the
documentation, in sequences of at most the context length. All compute on the CPU: transformers and
vLLM in float32, llama.cpp with float32 keys, values and attention. `--vllm` is the Python of an
environment with vLLM; `make test-serving` makes .venv-serving. Results of other models are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from conf.terminal import silence_torchao
from conf.tokenizer_folder import read_template
from eval.chat.llamacpp import EXACT, LlamaCpp
from model.gguf.command import GGUFConfig, gguf

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/gguf_files.json"
PROBE = ROOT / "benchmarks/probe_vllm.py"
PAGES = ("docs/pretrain.md", "docs/data.md", "docs/checkpoints.md")
TYPES = ("f32", "q8_0", "q4_0")
VLLM = "vLLM, float32"
ANSWER_TOKENS = 32
LONGEST = 256
QUESTIONS = [
    *("What is the capital of France?", "Which planet is known as the Red Planet?"),
    *("Write a Python function that adds two numbers.", "Name three primary colors."),
    *("Who wrote Romeo and Juliet?", "Explain gravity in one sentence.", "What is 12 plus 30?"),
    *("Translate 'good morning' into Spanish.", "List two uses of water.", "Why is the sky blue?"),
]


def main() -> None:
    """Measures the folders, and writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="name=FOLDER")
    parser.add_argument("--tokens", type=int, default=256, help="tokens whose perplexity counts")
    parser.add_argument("--vllm", help="Python with vLLM")
    options = parser.parse_args()
    silence_torchao()
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    figures["machine"] = machine()
    versions = figures.setdefault("versions", {})
    versions |= {name: version(name) for name in ("transformers", "xllamacpp", "gguf")}
    for model in options.models:
        name, _, folder = model.partition("=")
        found = measure(Path(folder), options)
        if VLLM in found:
            versions["vLLM"] = found[VLLM].pop("version")
        figures.setdefault("models", {})[name] = found
        write_results(RESULTS, figures, table(figures))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    window = getattr(model.config, "sliding_window", None) or LONGEST
    length = min(LONGEST, window, model.config.max_position_embeddings)
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    ids = tokenizer(text)["input_ids"][: options.tokens]
    sequences = [ids[at : at + length] for at in range(0, len(ids), length)]
    prompts = [prompt_ids(folder, tokenizer, question) for question in QUESTIONS]
    with torch.no_grad():
        losses = [
            -torch.log_softmax(model(torch.tensor([one])).logits[0, :-1].double(), -1)
            .gather(-1, torch.tensor(one[1:])[:, None])[:, 0]
            .sum()
            .item()
            for one in sequences
        ]
        answers = [
            model.generate(
                torch.tensor([ids]),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                repetition_penalty=1.0,
            )[0, len(ids) :].tolist()
            for ids in prompts
        ]
    count = sum(len(one) - 1 for one in sequences)
    found: dict[str, Any] = {
        "tokens": count,
        "sequence": length,
        "transformers": math.exp(sum(losses) / count),
    }
    del model
    ends = tokenizer.eos_token_id

    def compared(losses: list[float], said: list[list[int]]) -> dict[str, Any]:
        equal = [
            until_end(a, ends) == until_end(b, ends) for a, b in zip(said, answers, strict=True)
        ]
        return {"perplexity": math.exp(sum(losses) / count), "equal_answers": sum(equal)}

    if options.vllm:
        vllm, losses, said = in_vllm(options.vllm, folder, sequences, prompts)
        found[VLLM] = {"version": vllm, **compared(losses, said)}
    with tempfile.TemporaryDirectory() as place:
        for type in TYPES:
            file = Path(place) / f"{type}.gguf"
            gguf(GGUFConfig(model=str(folder), out=str(file), type=type))
            found[type] = compared(*in_llamacpp(file, sequences, prompts))
            found[type]["megabytes"] = file.stat().st_size / 1e6
            file.unlink()
    return found


def until_end(ids: list[int], eos: int) -> list[int]:
    """Returns an answer up to its end."""
    return ids[: ids.index(eos)] if eos in ids else ids


def prompt_ids(folder: Path, tokenizer: Any, question: str) -> list[int]:
    """Returns a question in the chat format of a model, or as it is without one."""
    if read_template(folder) is None:
        return list(tokenizer(question)["input_ids"])
    turn = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def in_llamacpp(
    file: Path, sequences: list[list[int]], prompts: list[list[int]]
) -> tuple[list[float], list[list[int]]]:
    """Returns the summed loss of each sequence, and the answers, of a file in llama.cpp."""
    with LlamaCpp(file, *EXACT, "--threads", "2", "--ctx-size", str(LONGEST)) as loaded:
        losses = [-sum(loaded.log_probabilities(one)) for one in sequences]
        return losses, [loaded.greedy(ids, ANSWER_TOKENS, ignore_eos=False) for ids in prompts]


def in_vllm(
    python: str, folder: Path, sequences: list[list[int]], prompts: list[list[int]]
) -> tuple[str, list[float], list[list[int]]]:
    """Returns vLLM's version, the summed loss of each sequence, and the answers of a folder."""
    asked = {"folder": str(folder), "prompts": prompts, "tokens": ANSWER_TOKENS}
    done = subprocess.run(
        [python, str(PROBE)],
        input=json.dumps(asked | {"sequences": sequences}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{python} {PROBE.name} failed:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return said["version"], [-sum(one) for one in said["log_probabilities"]], said["answers"]


def table(figures: dict[str, Any]) -> str:
    """Returns the page of the figures."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    lines = [
        "# Models in llama.cpp and vLLM, and the same in transformers",
        "",
        f"{described(figures['machine'])}. {versions}. Made by `python benchmarks/gguf_files.py`.",
        "",
        "Perplexity of this documentation, and answers of "
        f"{ANSWER_TOKENS} tokens to {len(QUESTIONS)} questions that equal those of transformers in "
        "every token, greedy in all.",
        "",
        "| model | as | MB | tokens | perplexity | over transformers | equal answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in figures["models"].items():
        stock, tokens = model["transformers"], model["tokens"]
        lines.append(f"| {name} | transformers, float32 | | {tokens} | {stock:.4f} | | |")
        for type in (VLLM, *TYPES):
            if one := model.get(type):
                size = f"{one['megabytes']:.1f}" if "megabytes" in one else ""
                lines.append(
                    f"| {name} | {type} | {size} | {tokens} | {one['perplexity']:.4f} | "
                    f"{one['perplexity'] - stock:+.4f} | {one['equal_answers']} of "
                    f"{len(QUESTIONS)} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
