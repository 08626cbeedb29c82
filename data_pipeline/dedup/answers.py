"""Says which document a duplicate repeats: in the cleaning report, and for `where duplicate=`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import InputError
from data_pipeline.dedup import originals
from data_pipeline.dedup.digests import EXACT, NEAR, URL
from data_pipeline.dedup.lookup import Copy, Duplicates

HOW = {
    URL: "a document with the URL of",
    EXACT: "an exact copy of",
    NEAR: "a near duplicate of",
}


@dataclass(frozen=True)
class Pair:
    """A duplicate with the kept document that it repeats, or a kept document with itself.

    The original is None if it belongs to another corpus, whose tables of duplicates are not there.
    `texts` are theirs. They and the similarity are None if a text cannot be read any more. `copies`
    is the number of documents that were dropped because they repeat the kept one.
    """

    copy: Copy
    original: Copy | None
    texts: tuple[str, str] | None
    similarity: float | None
    copies: int

    @property
    def documents(self) -> int:
        """The number of documents in the cluster, with the one that is kept."""
        return self.copies + 1


def make_pairs(duplicates: Duplicates, copies: Sequence[Copy]) -> list[Pair]:
    """Returns a pair for each document, with the similarity of its texts."""
    found = [(copy, duplicates.original(copy)) for copy in copies]
    texts = duplicates.texts({document for pair in found for document in pair if document})
    pairs = []
    for copy, original in found:
        both, similarity = None, None
        if original is not None and copy in texts and original in texts:
            both = texts[copy], texts[original]
            similarity = duplicates.similarity(*both)
        dropped = 0 if original is None else duplicates.copies_of(original)
        pairs.append(Pair(copy, original, both, similarity, dropped))
    return pairs


def answer(duplicates: Duplicates, doc: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a sentence and a table row for each duplicate or original that `doc` names.

    Raises InputError if the corpus has no such file.
    """
    for pair in make_pairs(duplicates, duplicates.find(doc)):
        copy, original = pair.copy, pair.original
        yield (
            sentence(pair, duplicates),
            {
                **copy.place,
                "state": "dropped" if copy.reason else "kept",
                "reason": copy.reason,
                "similarity": "" if pair.similarity is None else f"{pair.similarity:.4f}",
                "measured": "" if pair.similarity is None else "text",
                "cluster": "" if original is None else pair.documents,
                "copies": "" if original is None else pair.copies,
                **{
                    f"original_{key}": "" if original is None else original.place[key]
                    for key in copy.place
                },
            },
        )


def sentence(pair: Pair, duplicates: Duplicates) -> str:
    """Returns one or two sentences about a pair."""
    copy, original = pair.copy, pair.original
    number = pair.copies
    dropped = f"{number or 'no'} {'copies of it were' if number > 1 else 'copy of it was'} dropped"
    if not copy.reason:
        return f"{duplicates.describe(copy)} was kept. {dropped[0].upper()}{dropped[1:]}."
    text = f"{duplicates.describe(copy)} was dropped as "
    while copy.reason:
        text += HOW[copy.reason]
        found = duplicates.at(*copy.repeats)
        if found is None or original is None:
            return f"{text} a document of {copy.repeats[0]}, which does not record its documents."
        copy = found
        if copy.reason:
            text += f" {duplicates.describe(copy)}, which was dropped as "
    n = duplicates.n_grams
    if pair.similarity is None:
        similarity = "Their similarity is unknown, because a text cannot be read any more"
    else:
        similarity = f"Their {n}-grams have a Jaccard similarity of {pair.similarity:.3f}"
    kept = duplicates.describe(copy)
    return f"{text} {kept}, which was kept. {similarity}. In all, {dropped}."


def describe_report(report: dict[str, Any], duplicates: Duplicates) -> None:
    """Adds to the examples of a cleaning report which document each dropped one repeats."""
    examples = [
        (source, example)
        for source, counts in report["sources"].items()
        for step in counts["steps"]
        if step["name"] in HOW
        for example in step["examples"]
    ]
    found = [_copy_of(duplicates, source, example) for source, example in examples]
    pairs = iter(make_pairs(duplicates, [copy for copy in found if copy is not None]))
    for copy, (_, example) in zip(found, examples, strict=True):
        if copy is None:
            continue
        pair = next(pairs)
        example["row"] = copy.row
        if pair.original is None:
            example["original"] = None
            example["note"] = f"repeats a document of {copy.repeats[0]}"
            continue
        rounded = None if pair.similarity is None else round(pair.similarity, 4)
        example["original"] = pair.original.place
        example["similarity"] = rounded
        example["measured"] = "" if rounded is None else "text"
        example["cluster"] = pair.documents
        known = "unknown" if rounded is None else f"{rounded:.3f}"
        example["note"] = (
            f"repeats {duplicates.describe(pair.original)} · similarity {known} · cluster of "
            f"{pair.documents:,} documents"
        )


def describe_clusters(ranges: Sequence[dict[str, Any]], duplicates: Duplicates) -> dict[str, Any]:
    """Returns the numbers of clusters by size, and which documents have the most copies."""
    found = originals.merged_sizes(ranges)
    largest = []
    for size, unit, number in found["largest"]:
        copy = duplicates.at(duplicates.editions[-1].folder, unit, number)
        if copy is not None:
            largest.append({"documents": size, **copy.place})
    return {**found, "largest": largest}


def _copy_of(duplicates: Duplicates, source: str, example: dict[str, Any]) -> Copy | None:
    try:
        found = duplicates.find(f"{example['file']}#{example['position']}")
    except InputError:  # the name of the file is not UTF-8
        return None
    newest = duplicates.editions[-1].folder
    is_it = (copy for copy in found if copy.source == source and copy.folder == newest)
    return next(is_it, None)
