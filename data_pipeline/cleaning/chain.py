"""The steps of a source, one after the other, on one document at a time.

A step is a function from a text to a `Verdict`. It may keep the text, change it or drop it, and it
knows nothing of other documents: so the chain runs in any process in any order, and the steps that
change text can be run again later and give the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from data_pipeline.cleaning.config import CleaningConfig

FORMAT = 1
"""Counts changes of the steps that change what they do."""


class Verdict(NamedTuple):
    """text: as the step leaves it; reason: the rule that drops it, or ''; note: what a reader wants
    to know of that, such as the task that it gives away."""

    text: str
    reason: str = ""
    note: str = ""


Step = Callable[[str], Verdict]
MAKERS = {
    "language": "data_pipeline.cleaning.language:make",
    "gopher_quality": "data_pipeline.cleaning.heuristics:make_gopher_quality",
    "gopher_repetition": "data_pipeline.cleaning.heuristics:make_gopher_repetition",
    "c4": "data_pipeline.cleaning.heuristics:make_c4",
    "fineweb": "data_pipeline.cleaning.heuristics:make_fineweb",
    "quality": "data_pipeline.cleaning.quality:make",
    "decontaminate": "data_pipeline.cleaning.decontaminate:make",
    "pii": "data_pipeline.cleaning.pii:make",
}
"""`module:function` of each step, imported when it is used: a function of the CleaningConfig that
raises InputError for options that cannot be."""
CHANGES_TEXT = ("c4", "pii")


@dataclass(frozen=True)
class Outcome:
    """What became of a document. dropped_by: a step, or ''; changed: the steps that changed the
    text; sizes: bytes of UTF-8 that went into each step that it reached."""

    text: str
    dropped_by: str = ""
    reason: str = ""
    note: str = ""
    changed: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


class Chain:
    """The steps with these names; their models are loaded here."""

    def __init__(self, config: CleaningConfig, steps: list[str]) -> None:
        self.config = config
        self.names = steps
        self._steps: list[tuple[str, Step]] = [(name, _make(name, config)) for name in steps]

    def run(self, text: str) -> Outcome:
        """All steps until one drops the text."""
        changed: list[str] = []
        sizes: list[int] = []
        size = utf8_size(text)
        for name, step in self._steps:
            sizes.append(size)
            verdict = step(text)
            if verdict.reason:
                return Outcome(
                    text, name, verdict.reason, verdict.note, tuple(changed), tuple(sizes)
                )
            if verdict.text != text:
                changed.append(name)
                text = verdict.text
                size = utf8_size(text)
        return Outcome(text, changed=tuple(changed), sizes=tuple(sizes))

    def transform(self, text: str) -> str:
        """The text of a document that is known to be kept, as `run` left it."""
        for name, step in self._steps:
            if name in CHANGES_TEXT:
                text = step(text).text
        return text

    def fingerprint(self) -> str:
        """sha256 of all that decides what the chain does: options, libraries, models, files."""
        from importlib.metadata import version

        options = asdict(self.config)
        what = {"format": FORMAT, "steps": self.names, "datatrove": version("datatrove")}
        what |= {name: options[name] for name in self.names if name in options}
        what["word_tokenizer"] = self.config.word_tokenizer
        files = [*self.config.decontaminate.files] if "decontaminate" in self.names else []
        files += [
            model
            for name in ("language", "quality")
            if name in self.names and (model := getattr(self.config, name).model)
        ]
        what["files"] = [(file, _hash(Path(file))) for file in files]
        for name, step in self._steps:
            own = getattr(step, "fingerprint", None)
            if own is not None:
                what[f"{name}_content"] = own
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _make(name: str, config: CleaningConfig) -> Step:
    module, _, function = MAKERS[name].partition(":")
    step: Step = getattr(import_module(module), function)(config)
    return step


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
