"""`python -m data_pipeline pairs`: functions and their docstrings, for instruct tuning.

Real pairs out of a tokenized corpus: the function without its docstring is the prompt, the
docstring is the answer. Training pairs come from the training split, the others from held-out
files. For preference tuning, other functions of the training split are answered twice: by their own
docstring, which is the better answer, and by another function's.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError
from conf.output_kinds import PAIRS
from conf.outputs import Output
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from data_pipeline.text.selection import HELD_OUT, TRAIN
from data_pipeline.tokenizing.documents import read_documents

QUESTION = "Write the docstring of this function.\n\n"


@dataclass
class PairsConfig:
    """corpus: a tokenized folder; source: the one with Python code.

    out: folder for train.jsonl and held_out.jsonl, and preferences.jsonl for preference tuning.
    limit, held_out_limit, preferences: rows of each.
    max_code_chars, max_docstring_chars: longer functions and docstrings are left out.
    max_per_file: pairs of one file, so that no large module sets the tone.
    overwrite: replaces `out`, if it is a folder of pairs that Headwater made.
    """

    corpus: str = MISSING
    source: str = "code"
    out: str = MISSING
    limit: int = 2000
    held_out_limit: int = 100
    preferences: int = 0
    max_code_chars: int = 800
    max_docstring_chars: int = 240
    max_per_file: int = 20
    overwrite: bool = False


def pairs(config: PairsConfig) -> None:
    """Writes the folder `out`, whole or not at all."""
    output = Output(config.out, PAIRS, config.overwrite, [config.corpus])
    output.check()
    manifest = open_corpus(config.corpus)
    if config.source not in manifest.source_tokens(TRAIN):
        raise InputError(
            f"source={config.source} is not in {config.corpus}, which has "
            f"{', '.join(manifest.source_tokens(TRAIN))}."
        )
    seen: set[str] = set()  # a held-out docstring must not be one that was trained on
    train = draw(manifest, TRAIN, config, config.limit + 2 * config.preferences, seen)
    beyond = max(0, len(train) - 2 * config.preferences)
    rows = {
        TRAIN: train[:beyond],
        HELD_OUT: draw(manifest, HELD_OUT, config, config.held_out_limit, seen),
    }
    if config.preferences:
        rows["preferences"] = compare(train[beyond:])
    with output.folder() as folder:
        for split, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{split}.jsonl").write_text(text)
    for split, lines in rows.items():
        print(f"{config.out}/{split}.jsonl: {len(lines)} pairs")


def draw(
    manifest: Manifest, split: str, config: PairsConfig, limit: int, seen: set[str]
) -> list[dict[str, Any]]:
    """Up to `limit` rows in the order of the split's documents, none with a docstring in `seen`,
    to which theirs are added."""
    rows: list[dict[str, Any]] = []
    for document in read_documents(manifest, split, config.source):
        taken = 0
        for code, docstring in functions(document.text, config):
            if docstring not in seen and taken < config.max_per_file and len(rows) < limit:
                seen.add(docstring)
                rows.append(row(code, docstring, document.file))
                taken += 1
        if len(rows) >= limit:
            break
    if limit and not rows:
        raise InputError(
            f"{config.corpus}: no function with a docstring in the {split} split of source "
            f"'{config.source}': expected Python code."
        )
    return rows


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every other row with the next one's answer as the worse of two: mostly of the same file, so
    that the subject alone does not tell them apart. No answer is used twice, or a model could
    learn to like it or not, whatever was asked."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": other["completion"],
            "file": row["file"],
        }
        for row, other in zip(rows[::2], rows[1::2], strict=False)
    ]


def functions(text: str, config: PairsConfig) -> Iterator[tuple[str, str]]:
    """(code without the docstring, first paragraph of the docstring) of each function of a module
    that fits. Functions of tests are left out: their docstrings rarely say what the code does."""
    module = _parse(text)
    if module is None:
        return
    lines = re.split(r"\r\n|\r|\n", text)  # as Python counts them; splitlines knows more breaks
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        first = docstring.split("\n\n")[0].strip() if docstring else ""
        fits = 20 <= len(first) <= config.max_docstring_chars and " " in first
        if not fits or node.name.startswith("test"):
            continue
        quoted = node.body[0]
        body = (
            lines[node.lineno - 1 : quoted.lineno - 1] + lines[quoted.end_lineno : node.end_lineno]
        )
        code = textwrap.dedent("\n".join(body)).strip("\n")
        # What shares a line with its docstring does not parse without it.
        if 60 <= len(code) <= config.max_code_chars and _parse(code) is not None:
            yield code, first


def _parse(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def row(code: str, docstring: str, file: str) -> dict[str, Any]:
    """A pair as chat messages."""
    return {
        "prompt": [{"role": "user", "content": QUESTION + code}],
        "completion": [{"role": "assistant", "content": docstring}],
        "file": file,
    }
