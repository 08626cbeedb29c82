"""Computes the disk space and the number of files of a preparation, from those of a trial."""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from data_pipeline.cleaning.report import EXAMPLES
from data_pipeline.dedup import digests
from data_pipeline.dedup.ranges import RANGES
from data_pipeline.dedup.tables import FOLDER
from data_pipeline.sizing.forecast import Forecast
from data_pipeline.sizing.trial import folder_bytes, json_bytes
from data_pipeline.store.index_file import index_bytes
from data_pipeline.tokenizing.documents import write_names

BY_TOKEN, BY_DOCUMENT = (".bin", ".sums", ".mask"), (".idx", ".docs.parquet")
KNOWN = (
    *("corpus", "scan", "urls", "minhash", "copies", "match", "merge", "prepare", "encode"),
    *("resolve", "record"),
)
"""Folders whose content is counted apart. That of others grows with the documents."""
BYTES_PER_ENTRY = 330
"""Bytes of the entry of a shard in the result of its unit."""
BYTES_PER_INDEX_ROW, BYTES_PER_SUM = 65, 76
"""Bytes of a unit in the index without its names, and of the checksum of one of its tables."""
DUPLICATES_TABLE = 4500
"""Bytes of a unit's table of duplicates without its rows."""
ARRAY_HEADER = 128
"""Bytes of the header of a .npy file."""


@dataclass(frozen=True)
class Disk:
    """Bytes and files of the work folder, which is removed at the end, and of the corpus.

    The tables of the index are part of both, and are stored only once where the file system has
    hard links. `corpus_spread` is the relative error of the corpus's size to both sides.
    """

    between_bytes: float
    between_files: int
    corpus_bytes: float
    corpus_files: int
    index_bytes: float
    corpus_spread: tuple[float, float]


def disk_of(forecast: Forecast) -> Disk:
    """Returns what the whole preparation writes."""
    between, between_files = _between(forecast)
    corpus, corpus_files = _corpus(forecast)
    index, index_files = _index(forecast)
    tokens = forecast.tokens
    value = max(1.0, tokens.value)
    spread = (tokens.low / value, tokens.high / value)
    corpus, corpus_files = corpus + index, corpus_files + index_files
    return Disk(between, between_files, corpus, corpus_files, index, spread)


def _index(forecast: Forecast) -> tuple[float, int]:
    """Returns the bytes and files of the index of the corpus."""
    if not forecast.config.keep_index:
        return 0.0, 0
    units = forecast.units
    names = sum(
        json_bytes([file.name, file.bytes, file.version]) + 2 for u in units for file in u.files
    )
    tables, kinds = _tables(forecast)
    rows = sum(json_bytes([unit.source, unit.number, unit.start]) for unit in units)
    rows += len(units) * (BYTES_PER_INDEX_ROW + BYTES_PER_SUM * kinds)
    return tables + names + rows, len(units) * kinds + 1


def _tables(forecast: Forecast) -> tuple[float, int]:
    """Returns the bytes of all digests and signatures, and the number of tables of a unit."""
    if forecast.dedup is None:
        return 0.0, 0
    work, dedup = forecast.trial.folder.path, forecast.config.corpus.cleaning.dedup
    units, scanned = len(forecast.units), forecast.scanned
    size = units * ARRAY_HEADER + scanned * digests.DIGEST.itemsize
    kinds = 1 + dedup.url + dedup.minhash
    size *= 1 + dedup.url
    if not dedup.minhash:
        return size, kinds
    headers = 4 * (RANGES + 1) * dedup.buckets
    made = [_size_of(digests.signatures_path(work, one.unit)) for one in forecast.trial.drawn]
    signed = sum(max(0, found - headers) for found in made)
    return size + units * headers + signed / max(1, _sampled_scanned(forecast)) * scanned, kinds


def _corpus(forecast: Forecast) -> tuple[float, int]:
    trial, shards = forecast.trial, forecast.shard_count()
    folder = trial.folder.content
    prefixes = [
        (folder / entry["file"], entry)
        for one in trial.drawn
        for part in one.encoded["entries"].values()
        for entry in part
    ]
    tokens = max(1, sum(entry["tokens"] for _, entry in prefixes))
    documents = max(1, sum(entry["documents"] for _, entry in prefixes))
    fixed = {".idx": index_bytes(0, 0), ".docs.parquet": _empty_table()}
    size = 0.0
    endings = 0
    for ending in (*BY_TOKEN, *BY_DOCUMENT):
        found = [_size_of(prefix.with_name(prefix.name + ending)) for prefix, _ in prefixes]
        endings += any(found)
        start = fixed.get(ending, 0)
        rest = max(0, sum(found) - start * len(found))
        if ending in BY_TOKEN:
            size += rest / tokens * forecast.tokens.value
        else:
            size += rest / documents * forecast.kept.value
        size += start * shards
    names = [path for path in folder.iterdir() if path.is_file()]
    manifest = _size_of(folder / "manifest.json") / max(1, len(prefixes))
    size += sum(path.stat().st_size for path in names if path.name != "manifest.json")
    duplicates = [path.stat().st_size for path in (folder / FOLDER).glob("*")]
    rows = max(0, sum(duplicates) - DUPLICATES_TABLE * len(duplicates))
    tables = len(forecast.units) + 2 if duplicates else 0
    size += rows / max(1, _sampled_scanned(forecast)) * forecast.scanned
    size += DUPLICATES_TABLE * tables
    return size + manifest * shards, endings * shards + len(names) + tables


def _empty_table() -> int:
    with tempfile.TemporaryDirectory(prefix="headwater-") as name:
        prefix = Path(name) / "empty"
        write_names(prefix, [], [])
        return folder_bytes(Path(name))


def _between(forecast: Forecast) -> tuple[float, int]:
    """Returns the bytes and files of the work folder without the corpus."""
    trial, units = forecast.trial, len(forecast.units)
    work, dedup = trial.folder.path, forecast.config.corpus.cleaning.dedup
    shards = forecast.shard_count()
    size = _markers(forecast, "encode") + shards * BYTES_PER_ENTRY
    size += sum(len(str(unit.bytes)) + 2 for unit in forecast.units)  # outline.json
    files = (
        units + 5 + len(trial.seconds)
    )  # *.tasks, prepare/, plan.json, outline.json, lock, whole.json
    if forecast.dedup is None:
        return size, files
    scanned = forecast.scanned
    tables, kinds = _tables(forecast)
    size += _markers(forecast, "scan") + tables
    size += units * ARRAY_HEADER + scanned * digests.ROW.itemsize
    files += units * (2 + kinds) + 1  # scan/, minhash/, dedup.json
    tasks, merges = forecast.dedup.match_tasks, forecast.dedup.merge_tasks
    kept = len(forecast.dedup.digest_kinds) + 2 * dedup.minhash
    written = 2 * tasks + merges * (4 + kept)
    others = [path for path in work.iterdir() if path.is_dir() and path.name not in KNOWN]
    size += sum(map(folder_bytes, others)) * scanned / max(1, _sampled_scanned(forecast))
    files += units * len(others)
    links = [path.stat().st_size - ARRAY_HEADER for path in (work / "copies").rglob("*.npy")]
    known = max(1, len(trial.links))
    size += sum(links) * forecast.copies * scanned / known + written * ARRAY_HEADER
    return size, files + written


def _sampled_scanned(forecast: Forecast) -> int:
    found = 0
    for one in forecast.trial.drawn:
        steps = one.encoded["report"]["sources"][one.stratum.source]["steps"]
        own = [step for step in steps if step["name"] not in forecast.steps]
        found += len(one.stratum.rows) - one.encoded["counts"].get("malformed", 0)
        found -= sum(step["dropped_documents"] for step in own)
    return found


def _markers(forecast: Forecast, phase: str) -> float:
    """Returns the bytes of the results of a phase's units, without the entries of shards.

    They contain a few examples of what was dropped for each reason, which a unit has only if it
    drops that many documents.
    """
    trial = forecast.trial
    found = 0.0
    for source in forecast.readings:
        own = [one for one in trial.drawn if one.stratum.source == source]
        units = sum(unit.source == source for unit in forecast.units)
        counts: Counter[str] = Counter()
        lengths: defaultdict[str, list[int]] = defaultdict(list)
        plain = 0
        for one in own:
            scale = forecast.of_documents(one.stratum) / max(1, len(one.stratum.rows))
            result = trial.folder.result(phase, one.unit)
            found += scale * sum(json_bytes(row) for row in result.pop("malformed"))
            result.pop("entries", None)
            for step in result["report"]["sources"][source]["steps"]:
                for reason, (documents, _) in step["reasons"].items():
                    counts[reason] += documents * scale
                for example in step.pop("examples"):
                    lengths[example["reason"]].append(json_bytes(example) + 2)
            plain = max(plain, json_bytes(result))
        examples = sum(
            fmean(lengths[reason]) * _at_most(EXAMPLES, count / units)
            for reason, count in counts.items()
            if lengths[reason]
        )
        found += units * (plain + examples)
    return found


def _at_most(limit: int, mean: float) -> float:
    """Returns the mean of a Poisson variable that is cut off at a limit."""
    if mean > 50:
        return float(limit)
    chances = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(limit)]
    return limit - sum((limit - n) * chance for n, chance in enumerate(chances))


def _size_of(path: Path) -> int:
    """Returns the size of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
