"""Held-out loss of GGUF files in llama.cpp, and its table in the card of their model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from conf.errors import InputError
from conf.files import write_text
from conf.model_card import CARD, markdown_table, with_section
from data_pipeline.sampling.batches import IGNORED
from eval.chat.llamacpp import EXACT, LlamaCpp
from eval.inloop.evaluator import Score

HEADING = "GGUF files"
Parts = Sequence[tuple[Tensor, Tensor]]


def score_files(
    files: Iterable[Path], sources: Mapping[str, Parts], token_bytes: Tensor, seq_len: int
) -> dict[str, dict[str, Score]]:
    """Returns the scores of each file by source, by the file's name.

    llama.cpp computes in float32 next to the weights, on the CPU.

    Args:
        files: The GGUF files.
        sources: Tokens and labels of each part of a document, by source.
        token_bytes: Number of bytes of text of each token.
        seq_len: Tokens of the longest part.

    Raises:
        InputError: A file's context is too short for the sequences.
    """
    found = {}
    for file in files:
        with LlamaCpp(file, *EXACT) as loaded:
            context = loaded.context_length()
            if context <= seq_len:
                raise InputError(
                    f"seq_len={seq_len}: the context of {file} is {context} tokens. Lower seq_len "
                    f"to {context - 1}."
                )
            found[file.name] = {
                source: score(loaded, parts, token_bytes) for source, parts in sources.items()
            }
    return found


def score(loaded: LlamaCpp, parts: Parts, token_bytes: Tensor) -> Score:
    """Returns the score of a file that llama.cpp has loaded, counted as in `perplexity`."""
    total, of_text, tokens, size = 0.0, 0.0, 0, 0
    for ids, labels in parts:
        last = labels[-1:].tolist()
        whole = [*ids.tolist(), *(last if last != [IGNORED] else [])]
        for label, found in zip(labels.tolist(), loaded.log_probabilities(whole), strict=False):
            if label == IGNORED:
                continue
            total -= found
            tokens += 1
            if token_bytes[label] > 0:
                of_text -= found
                size += int(token_bytes[label])
    return Score(total / max(1, tokens), of_text / math.log(2) / max(1, size), tokens)


def mean(scores: Mapping[str, Score]) -> float:
    """Returns the loss over all sources, in nats per token."""
    tokens = sum(entry.tokens for entry in scores.values())
    return sum(entry.loss * entry.tokens for entry in scores.values()) / tokens


def write_card(
    folder: Path, files: Sequence[Path], losses: Mapping[str, float], before: tuple[str, float],
    text: str,
) -> None:  # fmt: skip
    """Writes the table of perplexities into the card of a model, or replaces it there.

    Args:
        folder: The model folder.
        files: The GGUF files.
        losses: Loss of each file by its name.
        before: The dtype of the model in `transformers`, and its loss.
        text: What the loss was computed on.
    """
    dtype, loss = before
    rows = [(f"this folder, {dtype} in transformers", "", f"{math.exp(loss):.4f}", "")]
    for file in files:
        found = losses[file.name]
        size = f"{file.stat().st_size / 1e6:,.1f}"
        rows.append((file.name, size, f"{math.exp(found):.4f}", f"{found - loss:+.4f}"))
    table = markdown_table(["file", "MB", "perplexity", "loss, difference"], rows)
    path = folder / CARD
    body = f"{table}\n\nPerplexity of {text}, the files in llama.cpp."
    write_text(path, with_section(path.read_text(encoding="utf-8"), HEADING, body))
