"""What a folder of checkpoints holds: names, manifests, verdicts."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from conf.errors import EXIT_CHECKPOINT, InputError

MANIFEST = "manifest.json"
LATEST = "latest"
BLOCK_BYTES = 8 << 20
THREADS = 8
FAULT = "HEADWATER_FAULT"


class CheckpointError(InputError):
    """Checkpoints that cannot be read or written; commands end with `EXIT_CHECKPOINT`."""

    exit_code = EXIT_CHECKPOINT
    every_rank = True  # the first rank that goes may end the others before they speak


def step_of(name: str) -> int | None:
    """The step of `step_N`; None for every other name, those of unfinished and bad ones too."""
    found = re.fullmatch(r"step_(\d+)", name)
    return int(found.group(1)) if found else None


def listed(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, newest step first."""
    found = [path for path in folder.glob("step_*") if step_of(path.name) is not None]
    return sorted(found, key=lambda path: step_of(path.name) or 0, reverse=True)


def quarantined(folder: Path) -> list[Path]:
    """Checkpoints that were found bad."""
    return sorted(folder.glob("step_*.corrupt*"))


def quarantine(path: Path) -> Path:
    """Puts a bad checkpoint out of the way; nothing is lost."""
    number, bad = 0, path.with_name(f"{path.name}.corrupt")
    while bad.exists():
        number += 1
        bad = path.with_name(f"{path.name}.corrupt{number}")
    os.rename(path, bad)
    return bad


def digest(path: Path) -> str:
    """XXH3-128 of a file: against accidents, at the speed of memory; not against forgery."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "xxh3_128": digest(path)}


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest durably, with a hash of itself."""
    write_durably(folder / MANIFEST, {**content, "hash": _self_hash(content)})


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises ValueError where it was damaged, OSError."""
    return parse_manifest((path / MANIFEST).read_bytes())


def parse_manifest(content: bytes) -> dict[str, Any]:
    """A manifest from the bytes of its file."""
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    if manifest.pop("hash", None) != _self_hash(manifest):
        raise ValueError("it does not have its own hash")
    return manifest


def verdict(path: Path) -> str | None:
    """None where a checkpoint has the files that its manifest lists, of the sizes there, and no
    others; else what is wrong. Reads the manifest alone."""
    try:
        files = read_manifest(path)["files"]
        there = {file.name: file.stat() for file in path.iterdir()}
    except (OSError, ValueError) as error:
        return f"{path / MANIFEST} cannot be read ({error})."
    for name, about in files.items():
        if name not in there:
            return f"{path / name} is missing."
        if there[name].st_size != about["bytes"]:
            return (
                f"{path / name} has {there[name].st_size} bytes, its manifest says "
                f"{about['bytes']}."
            )
    extra = sorted(there.keys() - files.keys() - {MANIFEST})
    return f"{path / extra[0]} is not in the manifest." if extra else None


def verify(path: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """`verdict`, and the hashes of every world-th file from the rank-th on, (rank, world)."""
    problem = verdict(path)
    if problem is not None:
        return problem
    files = read_manifest(path)["files"]
    mine = sorted(files)[share[0] :: share[1]]

    def check(name: str) -> str | None:
        try:
            right = digest(path / name) == files[name]["xxh3_128"]
        except OSError as error:
            return f"{path / name} cannot be read ({error})."
        return None if right else f"{path / name} does not have the hash of its manifest."

    with ThreadPoolExecutor(THREADS) as pool:
        return next((found for found in pool.map(check, mine) if found), None)


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that is there whole, or not at all, after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reach(phase: str, step: int, trainer: int | None = None) -> None:
    """A point of a save that tests can break: `HEADWATER_FAULT=kill:manifest:10` kills the trainer
    and this process there at step 10, `die:` this process alone, `hang:` stops it."""
    wanted = os.environ.get(FAULT, "").split(":")
    if wanted[1:] != [phase, str(step)]:
        return
    if wanted[0] == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if wanted[0] == "kill" and trainer is not None:
        os.kill(trainer, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def in_parallel(call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The results of `call` for all items, a few at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, items))


def _self_hash(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
