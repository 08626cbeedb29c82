"""Lists and verifies the checkpoints in a folder, by their names, manifests and hashes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from conf.errors import EXIT_CHECKPOINT, InputError
from conf.files import fsync_path

MANIFEST = "manifest.json"
LATEST = "latest"
BLOCK_BYTES = 8 << 20
THREADS = 8


class CheckpointError(InputError):
    """Raised if checkpoints cannot be read or written. Commands exit with `EXIT_CHECKPOINT`."""

    exit_code = EXIT_CHECKPOINT
    every_rank = True  # the first rank that exits may end the others before they print


def step_of(name: str) -> int | None:
    """Returns N for `step_N`, and None for other names, such as unfinished or damaged ones."""
    found = re.fullmatch(r"step_(\d+)", name)
    return int(found.group(1)) if found else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the committed checkpoints of a folder, newest step first."""
    found = [path for path in folder.glob("step_*") if step_of(path.name) is not None]
    return sorted(found, key=lambda path: step_of(path.name) or 0, reverse=True)


def quarantined_in(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder that were found damaged."""
    return sorted(folder.glob("step_*.corrupt*"))


def quarantine(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is not used but can be inspected."""
    number, bad = 0, path.with_name(f"{path.name}.corrupt")
    while bad.exists():
        number += 1
        bad = path.with_name(f"{path.name}.corrupt{number}")
    os.rename(path, bad)
    return bad


def file_digest(path: Path) -> str:
    """Returns the XXH3-128 hash of a file, which detects accidental damage but not tampering."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """Returns the entry of a file in the manifest."""
    return {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest durably, with a hash of its own content."""
    write_durably(folder / MANIFEST, {**content, "hash": _self_hash(content)})


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint. Raises OSError, or ValueError if it is damaged."""
    return parse_manifest((path / MANIFEST).read_bytes())


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Returns the manifest in the bytes of its file. Raises ValueError if it is damaged."""
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    if manifest.pop("hash", None) != _self_hash(manifest):
        raise ValueError("it does not have its own hash")
    return manifest


def verdict(path: Path) -> str | None:
    """Returns what is wrong with the names and sizes of a checkpoint's files, or None.

    It reads the manifest, but not the content of the other files.
    """
    try:
        files = read_manifest(path)["files"]
        found = {file.name: file.stat() for file in path.iterdir()}
    except (OSError, ValueError) as error:
        return f"{path / MANIFEST} cannot be read ({error})."
    for name, about in files.items():
        if name not in found:
            return f"{path / name} is missing."
        if found[name].st_size != about["bytes"]:
            return (
                f"{path / name} has {found[name].st_size} bytes, but its manifest lists "
                f"{about['bytes']}."
            )
    extra = sorted(found.keys() - files.keys() - {MANIFEST})
    return f"{path / extra[0]} is not in the manifest." if extra else None


def verify(path: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Reads and hashes the files of a checkpoint, and returns what is wrong, or None.

    share: (rank, world), to hash only every world-th file, starting with the rank-th.
    """
    problem = verdict(path)
    if problem is not None:
        return problem
    files = read_manifest(path)["files"]
    mine = sorted(files)[share[0] :: share[1]]

    def check(name: str) -> str | None:
        try:
            right = file_digest(path / name) == files[name]["xxh3_128"]
        except OSError as error:
            return f"{path / name} cannot be read ({error})."
        return None if right else f"{path / name} does not match its hash in the manifest."

    with ThreadPoolExecutor(THREADS) as pool:
        return next((found for found in pool.map(check, mine) if found), None)


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON durably and atomically: a crash leaves the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)


def in_parallel(call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Returns the results of `call` for all items, computed by a few threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, items))


def _self_hash(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
