"""The end of tokenizing: what all units wrote becomes a manifest, a report and a summary."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conf.errors import InputError
from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.dedup import duplicates as copies
from data_pipeline.files import write_json
from data_pipeline.store.manifest import Manifest
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.selection import HELD_OUT, TRAIN
from data_pipeline.text.units import Unit
from data_pipeline.tokenizing.encoder import describe_encoder
from data_pipeline.tokenizing.encoding import place_of, rejected_lines

KEPT = ("files", "documents", "bytes")


def make_manifest(
    corpus: CorpusConfig,
    units: list[Unit],
    inputs: str,
    folder: Path,
    prepared: dict[str, Any],
    results: list[dict[str, Any]],
    console: Console,
) -> Manifest:
    """Writes the report of the cleaning and the rejected rows into `folder`; returns the manifest.

    Raises InputError for a source with nothing to train on; says which has nothing held out.
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
        _check_source(name, counts[name], rejected.get(name, []), splits, console)
    write_json(folder / "cleaning.json", report.to_json())
    for name, lines in rejected.items():
        (folder / "rejected").mkdir(exist_ok=True)
        (folder / "rejected" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return Manifest(
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
        encoder=_about_encoder(prepared, results, console),
    )


def check_sources(corpus: CorpusConfig, units: list[Unit], work: Path) -> None:
    """After the first pass: raises InputError for a source of which nothing is left."""
    scans: list[dict[str, Any]] = []
    for unit in units:
        numbers, seen = copies.load_scan(unit, corpus, work)
        seen.counts["documents"] = len(numbers)
        scans.append({key: getattr(seen, key) for key in ("counts", "malformed", "lines")})
    rejected = rejected_lines(scans, units)
    for name in corpus.sources:
        counts: Counter[str] = Counter()
        for unit, scan in zip(units, scans, strict=True):
            if unit.source == name:
                counts.update(scan["counts"])
        _check_left(name, counts, rejected.get(name, []))


def _check_left(name: str, counts: Counter[str], rejected: list[str]) -> None:
    """Raises InputError for a source without a document; rejected: its malformed rows."""
    if counts["documents"]:
        return
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n and reason != "files")
    why = f"; the first in {place_of(json.loads(rejected[0]))}" if rejected else ""
    raise InputError(
        f"corpus.sources.{name} has no document left after its rules: {left_out or 'no rows'}{why}."
    )


def _check_source(
    name: str,
    counts: Counter[str],
    rejected: list[str],
    splits: dict[str, dict[str, Any]],
    console: Console,
) -> None:
    _check_left(name, counts, rejected)
    if name not in splits[TRAIN]:
        raise InputError(
            f"corpus.sources.{name} has {counts['documents']} documents and all of them fell to "
            "the held-out split: give it more files, or change corpus.seed or lower "
            "corpus.held_out_fraction."
        )
    if name not in splits[HELD_OUT]:
        console.print(
            f"source '{name}' has no held-out document and will not be validated on: give it more "
            "files or raise corpus.held_out_fraction.",
            style="yellow",
            soft_wrap=True,
        )


def _about_encoder(
    prepared: dict[str, Any], results: list[dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Which encoder made the shards. What differs between machines but not in the ids, such as
    the version, is kept out of the data's fingerprint."""
    name = prepared["encoder"]
    again = sum(result["encoder"] != name for result in results)
    if again:
        console.print(
            f"{name} gave other ids than tokenizers in {again} of {len(results)} units, which "
            "were encoded again with tokenizers.",
            style="yellow",
            soft_wrap=True,
        )
    checked = sum(result["checked"] for result in results)
    return {"name": describe_encoder(name), "documents_checked": checked, "units_again": again}


def print_summary(manifest: Manifest, console: Console) -> None:
    """A row a source and split."""
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
        left_out = {key: number for key, number in count.items() if key not in KEPT and number}
        if left_out:
            said = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            console.print(f"left out of {source}: {said}", highlight=False, soft_wrap=True)
