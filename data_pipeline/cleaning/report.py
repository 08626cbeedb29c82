"""The cleaning report, with counts and examples of what each step dropped in all units."""

from __future__ import annotations

from typing import Any

from data_pipeline.cleaning.chain import Outcome

EXAMPLES = 3
"""Maximum number of dropped documents kept as examples per reason. The first ones read are kept."""
EXAMPLE_CHARS = 1000
"""Maximum number of characters of an example."""


class CleaningReport:
    """Counts of documents and bytes in the cleaning, by source and step.

    `sources` maps each source to its numbers of documents and bytes, and to its steps. A step
    counts the documents and bytes that reached it and that it dropped, in total and by reason, and
    the documents that it changed. It also holds examples of dropped documents. `paragraphs` counts
    the paragraphs that were removed as repeated, by source, and has the most frequent of them.
    """

    def __init__(self) -> None:
        self.sources: dict[str, dict[str, Any]] = {}
        self.paragraphs: dict[str, Any] = {"removed": {}, "most_frequent": []}

    def expect(self, source: str, steps: list[str]) -> None:
        """Sets the order of a source's steps. Steps that no document reaches then count 0."""
        for step in steps:
            self._step(source, step)

    def add(self, source: str, file: str, position: int, outcome: Outcome) -> None:
        """Counts a document in each of the expected steps that it reached."""
        counts = self._source(source)
        counts["documents"] += 1
        counts["bytes"] += outcome.sizes[0]
        names = list(counts["steps"])
        for name, size in zip(names, outcome.sizes, strict=False):
            step = counts["steps"][name]
            step["in_documents"] += 1
            step["in_bytes"] += size
            step["changed_documents"] += name in outcome.changed
        if outcome.dropped_by:
            self.drop(source, file, position, outcome)

    def drop(self, source: str, file: str, position: int, outcome: Outcome) -> None:
        """Counts a document as dropped by the last step that it reached."""
        step = self._step(source, outcome.dropped_by)
        size = outcome.sizes[-1]
        step["dropped_documents"] += 1
        step["dropped_bytes"] += size
        count = step["reasons"].setdefault(outcome.reason, [0, 0])
        count[0] += 1
        count[1] += size
        if count[0] <= EXAMPLES:
            step["examples"].append(
                {
                    "reason": outcome.reason,
                    "file": file.encode("utf-8", "replace").decode(),
                    "position": position,
                    "text": outcome.text[:EXAMPLE_CHARS],
                    "note": outcome.note,
                }
            )

    def reach(self, source: str, step: str, size: int) -> None:
        """Counts a document of `size` bytes that reached a step outside of the cleaning chain."""
        counts = self._step(source, step)
        counts["in_documents"] += 1
        counts["in_bytes"] += size

    def change(self, source: str, step: str) -> None:
        """Counts a document that a step outside of the cleaning chain changed."""
        self._step(source, step)["changed_documents"] += 1

    def remove_paragraphs(self, source: str, count: int, size: int) -> None:
        """Counts the paragraphs that a document lost, and their bytes."""
        removed = self.paragraphs["removed"].setdefault(source, {"paragraphs": 0, "bytes": 0})
        removed["paragraphs"] += count
        removed["bytes"] += size

    def show_paragraph(
        self, rank: int, documents: int, source: str, place: tuple[str, int], text: str
    ) -> None:
        """Adds one of the most frequent paragraphs, the `rank`-th, which stays at a place."""
        file, position = place
        self.paragraphs["most_frequent"].append(
            {
                "rank": rank + 1,
                "documents": documents,
                "source": source,
                "file": file.encode("utf-8", "replace").decode(),
                "position": position,
                "text": text[:EXAMPLE_CHARS],
            }
        )

    def merge(self, other: CleaningReport) -> None:
        """Adds the report of a later unit."""
        for source, removed in other.paragraphs["removed"].items():
            self.remove_paragraphs(source, removed["paragraphs"], removed["bytes"])
        self.paragraphs["most_frequent"] += other.paragraphs["most_frequent"]
        for source, theirs in other.sources.items():
            counts = self._source(source)
            counts["documents"] += theirs["documents"]
            counts["bytes"] += theirs["bytes"]
            for name, step in theirs["steps"].items():
                ours = self._step(source, name)
                for key in COUNTS:
                    ours[key] += step[key]
                for reason, (documents, size) in step["reasons"].items():
                    count = ours["reasons"].setdefault(reason, [0, 0])
                    room = EXAMPLES - count[0]
                    if room > 0:
                        examples = [e for e in step["examples"] if e["reason"] == reason]
                        ours["examples"] += examples[:room]
                    count[0] += documents
                    count[1] += size

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `cleaning.json`, in which the steps of a source are a list."""
        content: dict[str, Any] = {
            "sources": {
                source: {
                    **counts,
                    "steps": [{"name": name, **step} for name, step in counts["steps"].items()],
                }
                for source, counts in self.sources.items()
            }
        }
        if any(self.paragraphs.values()):
            frequent = sorted(self.paragraphs["most_frequent"], key=lambda one: one["rank"])
            content["paragraphs"] = self.paragraphs | {"most_frequent": frequent}
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CleaningReport:
        """Returns the report that the result of `to_json` describes."""
        report = cls()
        report.paragraphs |= content.get("paragraphs", {})
        for source, counts in content["sources"].items():
            steps = {step["name"]: dict(step) for step in counts["steps"]}
            for step in steps.values():
                del step["name"]
            report.sources[source] = {**counts, "steps": steps}
        return report

    def _source(self, name: str) -> dict[str, Any]:
        return self.sources.setdefault(name, {"documents": 0, "bytes": 0, "steps": {}})

    def _step(self, source: str, name: str) -> dict[str, Any]:
        empty: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "reasons": {}, "examples": []}
        step: dict[str, Any] = self._source(source)["steps"].setdefault(name, empty)
        return step


COUNTS = (
    *("in_documents", "in_bytes", "dropped_documents", "dropped_bytes"),
    "changed_documents",
)
