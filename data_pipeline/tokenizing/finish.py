"""The last step of tokenization: the manifest, the cleaning report and a printed summary."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conf.errors import InputError
from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.dedup import answers
from data_pipeline.dedup.digests import scan_result
from data_pipeline.dedup.lookup import Duplicates
from data_pipeline.files import write_json
from data_pipeline.store.manifest import Manifest
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import HELD_OUT, TRAIN
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.encoder import describe_encoder
from data_pipeline.tokenizing.encoding import describe_malformed, rejected_lines

KEPT = ("files", "documents", "bytes")


def make_manifest(
    corpus: CorpusConfig,
    units: list[Unit],
    inputs: str,
    folder: Path,
    prepared: dict[str, Any],
    results: list[dict[str, Any]],
    clusters: list[dict[str, Any]],
    console: Console,
    base: Manifest | None = None,
) -> Manifest:
    """Writes the cleaning report and the rejected rows to `folder`, and returns the manifest.

    `clusters` are the results of the record phase, if there is deduplication.

    Raises InputError if a source has no training documents, and warns if it has no held-out ones.
    Sources that the corpus `base` already has need neither.
    """
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {TRAIN: {}, HELD_OUT: {}}
    counts = {name: Counter(dict.fromkeys(KEPT, 0)) for name in corpus.sources}
    report = CleaningReport()
    for unit, result in zip(units, results, strict=True):
        counts[unit.source].update(result["counts"])
        report.merge(CleaningReport.from_json(result["report"]))
        for split, shards in result["entries"].items():
            if shards:
                splits[split].setdefault(unit.source, []).extend(shards)
    rejected = rejected_lines(results, units)
    for name in corpus.sources:
        files = {file.path for unit in units if unit.source == name for file in unit.files}
        counts[name]["files"] = len(files)
        if base is not None and not counts[name]["documents"]:
            console.print(
                f"warning: nothing is added to source '{name}', because all of its documents were "
                "dropped.",
                style="yellow",
                soft_wrap=True,
            )
        elif base is None or name not in base.splits[TRAIN]:
            _check_source(name, counts[name], rejected.get(name, []), splits, console)
    for name, lines in rejected.items():
        (folder / "rejected").mkdir(exist_ok=True)
        (folder / "rejected" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    manifest = Manifest(
        folder=folder,
        name=corpus.name,
        inputs=inputs,
        tokenizer=prepared["tokenizer"],
        dtype=prepared["dtype"],
        splits=splits,
        sources={name: dict(count) for name, count in counts.items()},
        ends_in_eos=True,
        packed=sorted(corpus.fit),
        origin="tokenize",
        encoder=_encoder_entry(prepared, results, console),
    )
    content = report.to_json()
    if clusters:
        duplicates = Duplicates(manifest) if base is None else Duplicates(base, folder)
        content["duplicates"] = answers.describe_clusters(clusters, duplicates)
        answers.describe_report(content, duplicates)
    write_json(folder / "cleaning.json", content)
    return manifest


def check_sources(corpus: CorpusConfig, units: list[Unit], work: Path) -> None:
    """Raises InputError if the scan phase kept no document of a source."""
    scans = [scan_result(work, unit.id) for unit in units]
    rejected = rejected_lines(scans, units)
    for name in corpus.sources:
        counts: Counter[str] = Counter()
        for unit, scan in zip(units, scans, strict=True):
            if unit.source == name:
                counts.update(scan["counts"] | {"documents": scan["documents"]})
        _check_not_empty(name, counts, rejected.get(name, []))


def _check_not_empty(name: str, counts: Counter[str], rejected: list[str]) -> None:
    """Raises InputError if a source has no documents. The error names its first malformed row."""
    if counts["documents"]:
        return
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n and reason != "files")
    text = f"corpus.sources.{name}: no document is left ({dropped or 'no rows'})."
    if rejected:
        text += f" The first malformed row is {describe_malformed(json.loads(rejected[0]))}."
    raise InputError(f"{text} Correct the paths, or loosen the rules and cleaning steps.")


def _check_source(
    name: str,
    counts: Counter[str],
    rejected: list[str],
    splits: dict[str, dict[str, Any]],
    console: Console,
) -> None:
    _check_not_empty(name, counts, rejected)
    if name not in splits[TRAIN]:
        raise InputError(
            f"corpus.sources.{name}: all {counts['documents']} documents are in the held-out "
            "split. Add files, change corpus.seed, or lower corpus.held_out_fraction."
        )
    if name not in splits[HELD_OUT]:
        console.print(
            f"warning: source '{name}' has no held-out document, so it has no validation loss. "
            "Add files, or raise corpus.held_out_fraction.",
            style="yellow",
            soft_wrap=True,
        )


def _encoder_entry(
    prepared: dict[str, Any], results: list[dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Returns the manifest's entry about the encoder, and warns if units had to be encoded again.

    The entry is not part of the data's fingerprint, because the ids do not depend on it.
    """
    name = prepared["encoder"]
    repeated = sum(result["encoder"] != name for result in results)
    if repeated:
        console.print(
            f"warning: {name} and tokenizers gave different ids in {repeated} of {len(results)} "
            "units of work. These were encoded again with tokenizers.",
            style="yellow",
            soft_wrap=True,
        )
    checked = sum(result["checked"] for result in results)
    return {"name": describe_encoder(name), "documents_checked": checked, "units_again": repeated}


def print_summary(manifest: Manifest, console: Console) -> None:
    """Prints a table with one row per source and split, and what was dropped from each source."""
    table = Table(title=f"corpus {manifest.name}", title_justify="left")
    for column in ("source", "split", "documents", "tokens", "MB", "bytes/token"):
        table.add_column(column, justify="left" if column in ("source", "split") else "right")
    for split, sources in manifest.splits.items():
        for source, shards in sources.items():
            sums = {key: sum(s[key] for s in shards) for key in ("documents", "tokens", "bytes")}
            table.add_row(
                source,
                split,
                f"{sums['documents']:,}",
                f"{sums['tokens']:,}",
                f"{sums['bytes'] / 1e6:.2f}",
                f"{sums['bytes'] / sums['tokens']:.2f}",
            )
    console.print(table)
    for source, count in manifest.sources.items():
        dropped = {key: number for key, number in count.items() if key not in KEPT and number}
        if dropped:
            text = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
            console.print(f"dropped from {source}: {text}", highlight=False, soft_wrap=True)
