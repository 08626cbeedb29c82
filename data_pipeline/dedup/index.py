"""The index of a prepared corpus, with which later documents are compared.

It is the folder `index/` of each edition: for every unit that the preparation read, the sorted
digests of its documents (`<unit>.npy`, 20 bytes per document), those of their URLs (`<unit>.urls`,
20 bytes) if these are compared, and their MinHash signatures (`<unit>.keys`, 12 bytes per document
and bucket), including those of duplicates. `index.json` tells
how these were made, and lists the files of each unit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.cleaning.config import DedupOptions
from data_pipeline.dedup.digests import URL, is_enabled, signatures_path, table_path
from data_pipeline.dedup.earlier import DIGESTS, KEYS, URLS
from data_pipeline.files import write_json
from data_pipeline.store.checksums import sha256_of_file
from data_pipeline.store.manifest import INDEX, Manifest, load_manifest
from data_pipeline.store.storage import is_remote
from data_pipeline.text.corpus import CorpusConfig
from data_pipeline.text.units import SourceFile, Unit

FORMAT = 1
"""Version of the digests and signatures. Those of different versions cannot be compared."""
SIGNATURE_OPTIONS = ("n_grams", "buckets", "hashes_per_bucket")


def keep_tables(unit: Unit, corpus: CorpusConfig, work: Path, folder: Path) -> dict[str, str]:
    """Adds the tables of a unit to the index in `folder`, and returns their sha256 by suffix."""
    if not is_enabled(corpus):
        return {}
    tables = {DIGESTS: table_path(work, unit.id)}
    if corpus.cleaning.dedup.url:
        tables[URLS] = table_path(work, unit.id, URL)
    if corpus.cleaning.dedup.minhash:
        tables[KEYS] = signatures_path(work, unit.id)
    (folder / INDEX).mkdir(parents=True, exist_ok=True)
    for suffix, path in tables.items():
        _link(path, folder / INDEX / f"{unit.id:06}{suffix}")
    return {suffix: sha256_of_file(path) for suffix, path in tables.items()}


def write_index(
    folder: Path, corpus: CorpusConfig, units: Sequence[Unit], tables: Sequence[dict[str, str]]
) -> None:
    """Writes `index.json`, given what `keep_tables` returned for each unit."""
    rows = [
        {
            "source": unit.source,
            "number": unit.number,
            "start": unit.start,
            "files": [[*_identity(file)] for file in unit.files],
            "sha256": sums,
        }
        for unit, sums in zip(units, tables, strict=True)
    ]
    content = {"format": FORMAT, "dedup": _comparable(corpus.cleaning.dedup), "units": rows}
    write_json(folder / INDEX / "index.json", content)


def read_files(manifest: Manifest) -> set[tuple[str, str, int, str]]:
    """Returns the files that the corpus was made from: source, name, size and version of each."""
    return {
        (unit["source"], name, size, version)
        for number in range(1, manifest.edition_count + 1)
        for unit in (manifest.read_index(number) or {"units": []})["units"]
        for name, size, version in unit["files"]
    }


def is_read(source: str, file: SourceFile, files: set[tuple[str, str, int, str]]) -> bool:
    """Returns True if a file of a source is among those that a corpus was made from."""
    return (source, *_identity(file)) in files


def earlier_folders(manifest: Manifest, options: DedupOptions, key: str) -> list[tuple[str, int]]:
    """Returns the index folders of a corpus, each with its number of units.

    Raises InputError if there is no index, or if it cannot be compared with documents that are
    deduplicated with `options`. `key` names the setting that gives the corpus.
    """
    wanted = _comparable(options)
    found = []
    for number in range(1, manifest.edition_count + 1):
        folder = manifest.edition_folder(number) / INDEX
        index = manifest.read_index(number)
        if index is None:
            raise InputError(
                f"{key}={manifest.folder}: {folder} does not exist or is not complete, so new "
                "documents cannot be compared with those of the corpus. "
                "Prepare the corpus again with keep_index=true overwrite=true, or set "
                "corpus.cleaning.dedup.exact=false and corpus.cleaning.dedup.minhash=false."
            )
        if index["format"] != FORMAT:
            raise InputError(
                f"{key}={manifest.folder}: the index has format {index['format']}, but this "
                f"version compares format {FORMAT}. Prepare the corpus again."
            )
        for name, value in wanted.items():
            known = index["dedup"].get(name)
            if value and known != value:
                raise InputError(
                    f"{key}={manifest.folder}: its index was made with {_describe(name, known)}, "
                    f"but the new documents have {_describe(name, value)}. Set the same options "
                    "in corpus.cleaning.dedup, or prepare one of the two again."
                )
        found.append((str(folder.absolute()), len(index["units"])))
    return found


def against_folders(options: DedupOptions) -> list[tuple[str, int]]:
    """Returns the index folders of the corpora in `corpus.cleaning.dedup.against`."""
    found = []
    for path in options.against:
        found += earlier_folders(_open_against(path), options, "corpus.cleaning.dedup.against")
    return found


def against_fingerprints(options: DedupOptions) -> list[str]:
    """Returns the fingerprints of the corpora in `corpus.cleaning.dedup.against`."""
    return [_open_against(path).fingerprint for path in options.against]


def _open_against(path: str) -> Manifest:
    if is_remote(path):
        raise InputError(
            f"corpus.cleaning.dedup.against: {path} is remote. Copy its manifest.json and its "
            "index to this machine, and give the path of that folder."
        )
    return load_manifest(path)


def _comparable(options: DedupOptions) -> dict[str, Any]:
    """Returns the options that must be equal for two tables to be comparable."""
    signatures = {name: getattr(options, name) for name in SIGNATURE_OPTIONS}
    return {
        "minhash": signatures if options.minhash else {},
        "exact": options.exact or options.minhash,
        "url": options.url,
        "across_sources": "all" if options.across_sources else "each",
    }


def _describe(name: str, value: Any) -> str:
    if name == "across_sources":
        return f"across_sources={str(value == 'all').lower()}"
    if isinstance(value, dict) and value:
        return "minhash and " + " ".join(f"{key}={number}" for key, number in value.items())
    return f"{name}={str(bool(value)).lower()}"


def _identity(file: SourceFile) -> tuple[str, int, str]:
    return file.name, file.bytes, file.version


def _link(path: Path, to: Path) -> None:
    """Makes a hard link, or a copy if the file system has none. Replaces an existing file."""
    temporary = to.with_name(f".{to.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(to)
