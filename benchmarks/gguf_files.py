"""Compares GGUF files in llama.cpp with their models in transformers: perplexity and greedy text.

    pip install -c constraints.txt -e ".[gguf]"
    python benchmarks/gguf_files.py name=FOLDER [name=FOLDER ...] [--tokens 256]

Each folder is written as f32, q8_0 and q4_0. Perplexity is that of pages of the documentation, in
sequences of at most the context length. Both sides compute on the CPU, transformers in float32 and
llama.cpp with float32 keys, values and attention.
"""

from __future__ import annotations

import argparse
import math
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
PAGES = ("docs/pretrain.md", "docs/data.md", "docs/checkpoints.md")
TYPES = ("f32", "q8_0", "q4_0")
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
    options = parser.parse_args()
    silence_torchao()
    figures: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: version(name) for name in ("transformers", "xllamacpp", "gguf")},
        "tokens": options.tokens,
        "models": {},
    }
    for model in options.models:
        name, _, folder = model.partition("=")
        figures["models"][name] = measure(Path(folder), options.tokens)
        write_results(RESULTS, figures, table(figures))


def measure(folder: Path, tokens: int) -> dict[str, Any]:
    """Returns the figures of a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    window = getattr(model.config, "sliding_window", None) or LONGEST
    length = min(LONGEST, window, model.config.max_position_embeddings)
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    ids = tokenizer(text)["input_ids"][:tokens]
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
    with tempfile.TemporaryDirectory() as place:
        for type in TYPES:
            file = Path(place) / f"{type}.gguf"
            gguf(GGUFConfig(model=str(folder), out=str(file), type=type))
            found[type] = in_llamacpp(file, sequences, prompts, answers, tokenizer.eos_token_id)
            file.unlink()
    return found


def prompt_ids(folder: Path, tokenizer: Any, question: str) -> list[int]:
    """Returns a question in the chat format of a model, or as it is without one."""
    if read_template(folder) is None:
        return list(tokenizer(question)["input_ids"])
    turn = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def in_llamacpp(
    file: Path,
    sequences: list[list[int]],
    prompts: list[list[int]],
    answers: list[list[int]],
    eos: int,
) -> dict[str, Any]:
    """Returns perplexity, and how many answers equal those of transformers, of a file."""

    def text(ids: list[int]) -> list[int]:
        return ids[: ids.index(eos)] if eos in ids else ids

    with LlamaCpp(file, *EXACT, "--threads", "2", "--ctx-size", str(LONGEST)) as loaded:
        losses = [-sum(loaded.log_probabilities(one)) for one in sequences]
        found = [loaded.greedy(ids, ANSWER_TOKENS, ignore_eos=False) for ids in prompts]
    equal = sum(text(a) == text(b) for a, b in zip(found, answers, strict=True))
    count = sum(len(one) - 1 for one in sequences)
    return {
        "megabytes": file.stat().st_size / 1e6,
        "perplexity": math.exp(sum(losses) / count),
        "equal_answers": equal,
    }


def table(figures: dict[str, Any]) -> str:
    """Returns the page of the figures."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    lines = [
        "# GGUF files in llama.cpp, and their models in transformers",
        "",
        f"{described(figures['machine'])}. {versions}. Made by `python benchmarks/gguf_files.py`.",
        "",
        f"Perplexity of {figures['tokens']:,} tokens of this documentation, and answers of "
        f"{ANSWER_TOKENS} tokens to {len(QUESTIONS)} questions that equal those of transformers in "
        "every token, greedy in both.",
        "",
        "| model | type | MB | perplexity | over transformers | equal answers |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in figures["models"].items():
        stock = model["transformers"]
        lines.append(f"| {name} | transformers, float32 | | {stock:.4f} | | |")
        for type in TYPES:
            one = model[type]
            lines.append(
                f"| {name} | {type} | {one['megabytes']:.1f} | {one['perplexity']:.4f} | "
                f"{one['perplexity'] - stock:+.4f} | {one['equal_answers']} of {len(QUESTIONS)} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
