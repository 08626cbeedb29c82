"""Lists the `.bin`/`.idx` pairs of each source, and assigns each to a split."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from conf.errors import InputError
from conf.folders import expand, files_under
from data_pipeline.import_shards.config import ImportConfig


@dataclass(frozen=True)
class Pair:
    """A shard to import.

    `prefix` is its absolute path without extension, and `file` is its new path without extension,
    relative to the output folder.
    """

    source: str
    split: str
    prefix: Path
    file: str


def shard_file(prefix: Path, ending: str) -> Path:
    """Returns the path of the shard's file that has this ending, such as `.idx`."""
    return prefix.with_name(prefix.name + ending)


def list_pairs(source: str, where: str, config: ImportConfig) -> list[Pair]:
    """Returns the pairs of a source, sorted by name, each with its split.

    Raises InputError if there are none, if a file of a pair is missing, or if nothing would be left
    to train on.
    """
    key = f"sources.{source}={where}" if config.sources else f"path={where}"
    prefixes = sorted(set(_prefixes(where)))
    if not prefixes:
        raise InputError(
            f"{key}: no .bin and .idx files were found. Give a folder, a prefix or a glob of "
            "Megatron shards."
        )
    for prefix in prefixes:
        exists = [shard_file(prefix, ending).is_file() for ending in (".bin", ".idx")]
        if not all(exists):
            found, missing = (".bin", ".idx") if exists[0] else (".idx", ".bin")
            raise InputError(
                f"{shard_file(prefix, missing)} is missing, but {shard_file(prefix, found).name} "
                "exists. Restore the file, or give a glob that matches only complete shards."
            )
    held_out = _held_out(source, prefixes, config)
    if len(held_out) == len(prefixes):
        raise InputError(
            f"held_out={config.held_out}: matches all {len(prefixes)} shards of source '{source}'. "
            "Leave some to train on."
        )
    pairs, numbers = [], {"train": 0, "held_out": 0}
    for prefix in prefixes:
        split = "held_out" if prefix in held_out else "train"
        pairs.append(Pair(source, split, prefix, f"{split}/{source}-{numbers[split]:05}"))
        numbers[split] += 1
    return pairs


def _prefixes(where: str) -> Iterator[Path]:
    path = Path(where)
    if path.is_dir():
        found = [Path(name) for name in files_under(where)]
    elif glob.has_magic(where):
        found = [Path(name) for name in expand(where)]
    else:
        found = [Path(f"{where}{ending}") for ending in ("", ".bin", ".idx")]
    for file in found:
        if file.suffix in (".bin", ".idx") and file.is_file():
            yield file.absolute().with_suffix("")


def _held_out(source: str, prefixes: list[Path], config: ImportConfig) -> set[Path]:
    if config.held_out:
        pattern = config.held_out.removesuffix(".bin").removesuffix(".idx")
        matches = {p for p in prefixes if fnmatch(p.name, pattern) or fnmatch(str(p), pattern)}
        if not matches:
            raise InputError(
                f"held_out={config.held_out}: matches no shard of source '{source}' (the first one "
                f"is {prefixes[0].name}). Give a glob that matches names or paths of shards."
            )
        return matches
    if not config.held_out_fraction:
        return set()
    if len(prefixes) == 1:
        raise InputError(
            f"held_out_fraction={config.held_out_fraction:g}: source '{source}' has only one "
            f"shard, {prefixes[0].name}, and only whole shards can be held out. Add a shard for "
            "validation, or set held_out_fraction=0 to train without validation."
        )
    count = max(1, round(config.held_out_fraction * len(prefixes)))

    def key(prefix: Path) -> bytes:
        return hashlib.sha256(f"{config.seed}:split:{source}:{prefix.name}".encode()).digest()

    return set(sorted(prefixes, key=key)[: min(count, len(prefixes) - 1)])
