"""The files of a model folder that are published, and its card with scores and the name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.model_card import CARD, front_matter, read_front_matter, split_front_matter
from eval.publish.leaks import is_text, leaks
from eval.report.card import model_index, scores_of
from eval.scores.results import FORMAT, load_results

WEIGHTS = ("*.safetensors", "*.gguf")
"""Files that are uploaded one by one."""
PUBLISHED = (
    *("README.md", "LICENSE*", "NOTICE*", "*.json", "*.jsonl", "*.jinja", "*.txt", "*.model"),
    *WEIGHTS,
)
"""Files of a model folder that are published."""
LOCAL = ("trainer_state.json",)
"""Files of the training on this machine, which are not published."""
MAX_RESULT_BYTES = 50_000_000
MAX_LEAKS = 10
"""Secrets and paths that an error names."""


@dataclass(frozen=True)
class File:
    """A file to publish.

    Attributes:
        name: Its name in the repository.
        content: Its path on this machine, or its bytes.
        source: The file that the bytes were made from.
    """

    name: str
    content: Path | bytes
    source: Path | None = None

    @property
    def size(self) -> int:
        """Returns the number of bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def is_weights(self) -> bool:
        """Returns whether the file holds weights."""
        return any(fnmatch(self.name, pattern) for pattern in WEIGHTS)

    def text(self) -> str:
        """Returns the text that is searched: that of the source, whose lines a user can find."""
        content = self.source or self.content
        data = content if isinstance(content, bytes) else content.read_bytes()
        return data.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Contents:
    """The files of a revision, weights first, and the names in the folder that are left out."""

    files: list[File]
    left_out: list[str]


def contents_of(
    folder: Path,
    repo: str,
    revision: str = "main",
    gguf: Sequence[str] = (),
    results: Sequence[str] = (),
) -> Contents:
    """Returns what is published of a model folder.

    Args:
        folder: The model folder.
        repo: Owner and name of the repository.
        revision: Branch of the repository.
        gguf: GGUF files that are published, too.
        results: Files of lm_eval for the card; if empty, those next to or in the folder that
            scored it.

    Raises:
        InputError: The folder is not a model folder, or a file does not exist.
    """
    for name in ("config.json", CARD):
        if not (folder / name).is_file():
            raise InputError(
                f"model={folder}: {name} is missing. Give a folder made by python -m pretrain "
                "export, python -m finetune or python -m eval report card=."
            )
    scored = [Path(path) for path in results] or list(result_files(folder))
    names = [path.name for path in scored if path.parent.resolve() == folder.resolve()]
    files, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.name in names or path.name.startswith("."):
            continue
        chosen = any(fnmatch(path.name, pattern) for pattern in PUBLISHED)
        if path.is_dir() or not chosen or path.name in LOCAL:
            left_out.append(path.name)
        elif path.name != CARD:
            files.append(File(path.name, path))
    for path in map(Path, gguf):
        if path.suffix != ".gguf" or not path.is_file():
            raise InputError(f"gguf={path}: not a GGUF file. Give the path of one.")
        if path.name in {file.name for file in files}:
            raise InputError(f"gguf={path}: the folder has a file of this name, too. Rename one.")
        files.append(File(path.name, path))
    card = card_text(folder, repo, revision, scored)
    files.append(File(CARD, card.encode(), folder / CARD))
    return Contents(sorted(files, key=lambda file: not file.is_weights), left_out)


def result_files(folder: Path) -> Iterator[Path]:
    """Yields the files of lm_eval in a model folder or next to it that scored its model."""
    for path in sorted([*folder.parent.glob("*.json"), *folder.glob("*.json")]):
        if path.stat().st_size > MAX_RESULT_BYTES:
            continue
        try:
            content = json.loads(path.read_bytes())
        except ValueError:
            continue
        is_result = isinstance(content, dict) and content.get("format") == FORMAT
        if is_result and "models" in content and scores_of(folder, content):
            yield path


def card_text(folder: Path, repo: str, revision: str, results: Sequence[Path]) -> str:
    """Returns the card of a folder with its scores, and with its name on the Hub in the example."""
    scores: dict[tuple[str, str], float] = {}
    for path in results:
        found = scores_of(folder, load_results(path))
        if not found:
            raise InputError(
                f"results={path}: it has no scores of {folder}. Give a file of python -m eval "
                "lm_eval that scored this folder."
            )
        scores |= {(task, metric): value for task, metric, value in found}
    metadata: dict[str, Any] = read_front_matter(folder)
    if scores:
        rows = [(task, metric, value) for (task, metric), value in scores.items()]
        metadata["model-index"] = model_index(repo.split("/")[-1], rows)
    _, body = split_front_matter((folder / CARD).read_text(encoding="utf-8"))
    named = f'"{repo}"' if revision == "main" else f'"{repo}", revision="{revision}"'
    return front_matter(metadata) + body.replace('"FOLDER"', named)


def check_leaks(files: Sequence[File], key: str) -> None:
    """Raises InputError if a text file has a secret, or a path of a home folder.

    Args:
        files: The files.
        key: The setting that chose them, with its value.
    """
    home = str(Path.home())
    found = [
        str(leak)
        for file in files
        if is_text(file.name)
        for leak in leaks(file.name, file.text(), home)
    ]
    if found:
        more = f"; and {len(found) - MAX_LEAKS} more" if len(found) > MAX_LEAKS else ""
        raise InputError(
            f"{key}: {'; '.join(found[:MAX_LEAKS])}{more}. Remove them from these files before "
            "they are published."
        )
