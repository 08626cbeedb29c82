"""`python -m data_pipeline pairs`: functions and their docstrings, for instruct tuning.

Real pairs out of a tokenized corpus: the function without its docstring is the prompt, the
docstring is the answer. Training pairs come from the training split, the others from held-out
files.
"""

from __future__ import annotations

import ast
import json
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError
from data_pipeline.documents import read_documents
from data_pipeline.manifest import load_manifest
from data_pipeline.selection import HELD_OUT, TRAIN

QUESTION = "Write the docstring of this function.\n\n"


@dataclass
class PairsConfig:
    """corpus: a tokenized folder; source: the one with Python code.

    out: folder for train.jsonl and held_out.jsonl. limit, held_out_limit: rows of each.
    max_code_chars, max_docstring_chars: longer functions and docstrings are left out.
    """

    corpus: str = MISSING
    source: str = "code"
    out: str = MISSING
    limit: int = 2000
    held_out_limit: int = 100
    max_code_chars: int = 800
    max_docstring_chars: int = 240


def pairs(config: PairsConfig) -> None:
    """Writes both files."""
    manifest = load_manifest(config.corpus)
    if config.source not in manifest.source_tokens(TRAIN):
        raise InputError(
            f"source={config.source} is not in {config.corpus}, which has "
            f"{', '.join(manifest.source_tokens(TRAIN))}."
        )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for split, limit in ((TRAIN, config.limit), (HELD_OUT, config.held_out_limit)):
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        for document in read_documents(manifest, split, config.source):
            for code, docstring in functions(document.text, config):
                if docstring not in seen and len(rows) < limit:
                    seen.add(docstring)
                    rows.append(row(code, docstring, document.file))
            if len(rows) >= limit:
                break
        if not rows:
            raise InputError(
                f"{config.corpus}: no function with a docstring in the {split} split of source "
                f"'{config.source}': expected Python code."
            )
        path = out / f"{split}.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in rows))
        temporary.replace(path)
        print(f"{path}: {len(rows)} pairs")


def functions(text: str, config: PairsConfig) -> Iterator[tuple[str, str]]:
    """(code without the docstring, docstring) of each function of a module that fits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.splitlines()
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        first = docstring.split("\n\n")[0].strip() if docstring else ""
        if not 20 <= len(first) <= config.max_docstring_chars or " " not in first:
            continue
        quoted = node.body[0]
        body = (
            lines[node.lineno - 1 : quoted.lineno - 1] + lines[quoted.end_lineno : node.end_lineno]
        )
        code = textwrap.dedent("\n".join(body)).strip("\n")
        if 60 <= len(code) <= config.max_code_chars:
            yield code, first


def row(code: str, docstring: str, file: str) -> dict[str, Any]:
    """A pair as chat messages."""
    return {
        "prompt": [{"role": "user", "content": QUESTION + code}],
        "completion": [{"role": "assistant", "content": docstring}],
        "file": file,
    }
