"""Reads the results of cleaning from the `cleaning.json` and `rejected/*.jsonl` of a corpus.

A corpus that was added to has these files once per edition.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.store.manifest import ADDITIONS

EXAMPLES, EXAMPLES_OF_MANY = 3, 1
"""Numbers of examples shown per rule: for up to MANY_SOURCES sources, and for more sources."""
MANY_SOURCES = 8
REJECTED_ROWS = 20
"""Number of malformed rows shown per source, each with up to REJECTED_CHARS characters."""
REJECTED_CHARS = 300
SHOWN_CHARS = 1000
"""Number of characters shown of each example of a dropped document."""


@dataclass(frozen=True)
class FunnelReason:
    """The documents that one rule of a cleaning step dropped.

    Each example is a dictionary with the file, position, text and note of a dropped document.
    """

    name: str
    documents: int
    bytes: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class FunnelStep:
    """Counts of one cleaning step of a source: its input, and what it dropped and changed."""

    name: str
    in_documents: int
    in_bytes: int
    dropped_documents: int
    dropped_bytes: int
    changed_documents: int
    reasons: list[FunnelReason]


@dataclass(frozen=True)
class Funnel:
    """The cleaning steps of a source, in the order in which they ran."""

    source: str
    documents: int
    bytes: int
    steps: list[FunnelStep]

    @property
    def kept_documents(self) -> int:
        """Number of documents that passed all steps."""
        return self.documents - sum(step.dropped_documents for step in self.steps)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the documents that passed all steps, measured before any step changed them."""
        return self.bytes - sum(step.dropped_bytes for step in self.steps)


@dataclass(frozen=True)
class Rejected:
    """The first malformed rows of a source, and their total number."""

    source: str
    count: int
    rows: list[dict[str, Any]]


def read_funnels(folder: Path) -> list[Funnel]:
    """Returns the funnel of each source from `cleaning.json`; empty if there is no such file."""
    merged = CleaningReport()
    path = folder
    try:
        for path in _in_editions(folder, "cleaning.json"):
            merged.merge(CleaningReport.from_json(json.loads(path.read_text())))
        sources = merged.to_json()["sources"]
        limit = EXAMPLES if len(sources) <= MANY_SOURCES else EXAMPLES_OF_MANY
        return [
            Funnel(
                name,
                source["documents"],
                source["bytes"],
                [_step(step, limit) for step in source["steps"]],
            )
            for name, source in sources.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a cleaning report ({type(error).__name__}: {error}). Tokenize the "
            "corpus again, or remove the file."
        ) from None


def _step(step: dict[str, Any], limit: int) -> FunnelStep:
    reasons = []
    for name, (documents, size) in step["reasons"].items():
        examples = [e for e in step["examples"] if e["reason"] == name][:limit]
        shown = [{**e, "text": str(e["text"])[:SHOWN_CHARS]} for e in examples]
        reasons.append(FunnelReason(name, documents, size, shown))
    return FunnelStep(
        name=step["name"],
        in_documents=step["in_documents"],
        in_bytes=step["in_bytes"],
        dropped_documents=step["dropped_documents"],
        dropped_bytes=step["dropped_bytes"],
        changed_documents=step["changed_documents"],
        reasons=sorted(reasons, key=lambda reason: -reason.documents),
    )


@dataclass(frozen=True)
class RepeatedParagraphs:
    """The paragraphs that were removed because many documents contain them.

    Attributes:
        removed: number of removed paragraphs of each source.
        bytes: their size in all sources.
        most_frequent: the most frequent of them: text, number of documents, and where it stays.
    """

    removed: dict[str, int]
    bytes: int
    most_frequent: list[dict[str, Any]]


def read_paragraphs(folder: Path) -> RepeatedParagraphs | None:
    """Returns the repeated paragraphs from `cleaning.json`, or None if there are none."""
    path = folder / "cleaning.json"
    found = json.loads(path.read_text()).get("paragraphs") if path.is_file() else None
    if not found:
        return None
    return RepeatedParagraphs(
        {source: one["paragraphs"] for source, one in found["removed"].items()},
        sum(one["bytes"] for one in found["removed"].values()),
        [{**one, "text": str(one["text"])[:SHOWN_CHARS]} for one in found["most_frequent"]],
    )


def read_rejected(folder: Path) -> list[Rejected]:
    """Returns the first malformed rows of each source that has any, and their total number."""
    found: dict[str, Rejected] = {}
    for path in _in_editions(folder, "rejected/*.jsonl"):
        before = found.get(path.stem, Rejected(path.stem, 0, []))
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = [_row(line) for line in islice(file, REJECTED_ROWS)]
            count = len(rows) + sum(1 for _ in file)
        if count:
            shown = [*before.rows, *rows][:REJECTED_ROWS]
            found[path.stem] = Rejected(path.stem, before.count + count, shown)
    return [found[source] for source in sorted(found)]


def _in_editions(folder: Path, pattern: str) -> list[Path]:
    """Returns the files that match a pattern in the folder of each edition of a corpus."""
    return [
        *sorted(folder.glob(pattern)),
        *sorted(folder.glob(f"{ADDITIONS}/*/{pattern}")),
    ]


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        fields = {key: row.get(key, "") for key in ("file", "line", "reason", "text")}
    except (ValueError, AttributeError):
        fields = {"file": "", "line": "", "reason": "", "text": line}
    text = str(fields["text"])
    return {**fields, "text": text[:REJECTED_CHARS] + ("…" if len(text) > REJECTED_CHARS else "")}
