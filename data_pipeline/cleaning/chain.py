"""The chain of cleaning steps of a source, applied to one document at a time.

A step is a function from a text to a `Verdict`, which keeps, changes or drops the text. A step sees
only one document, so documents can be processed in any process and in any order, and the steps that
change text give the same result when they run again in the second pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.cleaning.config import CleaningConfig

FORMAT = 1
"""Version of the steps, incremented whenever a change of the code changes their results."""


class Verdict(NamedTuple):
    """The result of a step.

    Attributes:
        text: the text after the step.
        reason: the rule that drops the text, or '' if the text is kept.
        note: detail about the reason that the report shows, such as the n-gram that was found.
    """

    text: str
    reason: str = ""
    note: str = ""


Step = Callable[[str], Verdict]
UrlStep = Callable[[str, str], Verdict]
"""A step that is also given the URL of the document, which is '' if it has none."""
MAKERS = {
    "url_blocklist": "data_pipeline.cleaning.url_blocklist:make",
    "language": "data_pipeline.cleaning.language:make",
    "gopher_quality": "data_pipeline.cleaning.heuristics:make_gopher_quality",
    "gopher_repetition": "data_pipeline.cleaning.heuristics:make_gopher_repetition",
    "c4": "data_pipeline.cleaning.heuristics:make_c4",
    "fineweb": "data_pipeline.cleaning.heuristics:make_fineweb",
    "quality": "data_pipeline.cleaning.quality:make",
    "decontaminate": "data_pipeline.cleaning.decontaminate:make",
    "pii": "data_pipeline.cleaning.pii:make",
}
"""`module:function` that makes each step from a CleaningConfig, imported on first use.

Each function raises InputError if its options are invalid."""
CHANGES_TEXT = ("c4", "pii")
READS_URL = ("url_blocklist",)


@dataclass(frozen=True)
class Outcome:
    """The result of the chain for a document.

    Attributes:
        text: the text after the last step that the document reached.
        dropped_by: the step that dropped the document, or ''.
        reason, note: reason and note of that step's verdict.
        changed: the steps that changed the text.
        sizes: UTF-8 bytes of the text before each step that the document reached.
    """

    text: str
    dropped_by: str = ""
    reason: str = ""
    note: str = ""
    changed: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


class Chain:
    """A sequence of cleaning steps whose models have been loaded."""

    def __init__(self, config: CleaningConfig, steps: list[str]) -> None:
        self.config = config
        self.names = steps
        self._steps: list[tuple[str, Any]] = [(name, _make(name, config)) for name in steps]

    def run(self, text: str, url: str = "") -> Outcome:
        """Runs the steps on a text, and on its URL if it has one, until one of them drops it."""
        changed: list[str] = []
        sizes: list[int] = []
        size = utf8_size(text)
        for name, step in self._steps:
            sizes.append(size)
            verdict = step(text, url) if name in READS_URL else step(text)
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
        """Returns the text that `run` gives for a kept document, but skips the pure filters."""
        for name, step in self._steps:
            if name in CHANGES_TEXT:
                text = step(text).text
        return text

    def fingerprint(self) -> str:
        """Returns the sha256 of all that affects the results: options, libraries and files."""
        from importlib.metadata import version

        options = asdict(self.config)
        content = {"format": FORMAT, "steps": self.names, "datatrove": version("datatrove")}
        content |= {name: options[name] for name in self.names if name in options}
        content["word_tokenizer"] = self.config.word_tokenizer
        files = [
            file
            for name in ("decontaminate", "url_blocklist")
            if name in self.names
            for file in getattr(self.config, name).files
        ]
        files += [
            model
            for name in ("language", "quality")
            if name in self.names and (model := getattr(self.config, name).model)
        ]
        content["files"] = [(file, _hash(Path(file))) for file in files]
        for name, step in self._steps:
            step_fingerprint = getattr(step, "fingerprint", None)
            if step_fingerprint is not None:
                content[f"{name}_content"] = step_fingerprint
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def utf8_size(text: str) -> int:
    """Returns the number of UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


def _make(name: str, config: CleaningConfig) -> Step | UrlStep:
    module, _, function = MAKERS[name].partition(":")
    step: Step | UrlStep = getattr(import_module(module), function)(config)
    return step


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
