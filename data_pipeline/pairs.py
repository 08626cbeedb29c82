"""`python -m data_pipeline pairs`: makes tuning data from the code in a tokenized corpus.

In each pair, a Python function without its docstring is the prompt, and the docstring is the
answer. Training pairs come from the training split, and held-out pairs from the held-out split.
Rows for preference tuning, which use further functions of the training split, have two answers: the
function's own docstring, which is preferred, and that of another function.
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
    """Configuration of `pairs`.

    corpus: folder of a tokenized corpus.
    source: name of the source that contains Python code.
    out: output folder for train.jsonl, held_out.jsonl and preferences.jsonl.
    overwrite: replaces `out` if it is a folder of pairs that Headwater made.
    limit: maximum number of rows in train.jsonl.
    held_out_limit: maximum number of rows in held_out.jsonl.
    preferences: maximum number of rows in preferences.jsonl; 0 writes no such file.
    max_code_chars: maximum number of characters of code; longer functions are skipped.
    max_docstring_chars: maximum number of characters in the first paragraph of a docstring;
        functions with a longer one are skipped.
    max_per_file: maximum number of pairs per source file, so that no large module dominates.
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
    """Extracts the pairs and writes the folder `out` atomically."""
    output = Output(config.out, PAIRS, config.overwrite, [config.corpus])
    output.check()
    manifest = open_corpus(config.corpus)
    if config.source not in manifest.source_tokens(TRAIN):
        raise InputError(
            f"source={config.source}: not a source of corpus={config.corpus}. Choose one of "
            f"{', '.join(manifest.source_tokens(TRAIN))}."
        )
    seen: set[str] = set()  # a held-out docstring must not be one that was trained on
    train = draw(manifest, TRAIN, config, config.limit + 2 * config.preferences, seen)
    count = max(0, len(train) - 2 * config.preferences)
    rows = {
        TRAIN: train[:count],
        HELD_OUT: draw(manifest, HELD_OUT, config, config.held_out_limit, seen),
    }
    if config.preferences:
        rows["preferences"] = preference_rows(train[count:])
    with output.folder() as folder:
        for split, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{split}.jsonl").write_text(text)
    for split, lines in rows.items():
        print(f"{config.out}/{split}.jsonl: {len(lines)} pairs")


def draw(
    manifest: Manifest, split: str, config: PairsConfig, limit: int, seen: set[str]
) -> list[dict[str, Any]]:
    """Returns up to `limit` pairs of a split whose docstrings are not in `seen`.

    The docstrings of these pairs are added to `seen`.

    Raises InputError if the split has no function with a docstring.
    """
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
            f"source={config.source}: the {split} split of corpus={config.corpus} has no function "
            "with a docstring. Choose a source with Python code."
        )
    return rows


def preference_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns every other row, with the answer of the row after it as the rejected answer.

    The two answers mostly come from the same file, so that the topic alone does not distinguish
    them. No answer is used twice, so that a model cannot learn to prefer it for any prompt.
    """
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
    """Yields each function's code without docstring, and the first paragraph of its docstring.

    Functions that exceed the limits are skipped. So are tests, because their docstrings rarely
    describe the code.
    """
    module = _parse(text)
    if module is None:
        return
    lines = re.split(r"\r\n|\r|\n", text)  # counts lines like Python's parser, unlike splitlines
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
        # A function on the same line as its docstring does not parse without it.
        if 60 <= len(code) <= config.max_code_chars and _parse(code) is not None:
            yield code, first


def _parse(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def row(code: str, docstring: str, file: str) -> dict[str, Any]:
    """Returns a pair as a row of chat messages."""
    return {
        "prompt": [{"role": "user", "content": QUESTION + code}],
        "completion": [{"role": "assistant", "content": docstring}],
        "file": file,
    }
