"""Sharded checkpoints that are either whole and verified or not there (I7).

`step_N/` holds the shards of torch.distributed.checkpoint and, written last, `manifest.json` with
the size and sha256 of every file and the position in the data. All of it is written into
`step_N.tmp/`, made durable, then renamed; `latest` moves after that, and old ones go last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from conf.errors import InputError

MANIFEST = "manifest.json"


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
) -> Path:
    """Writes `folder/step_<step>`; every rank calls it.

    about: what else the manifest states, JSON. Raises on every rank where one could not write.
    """
    final, temporary = folder / f"step_{step}", folder / f"step_{step}.tmp"
    rank = dist.get_rank()
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=temporary)
    mine = {
        path.name: _durable_entry(path)
        for path in temporary.iterdir()
        if path.name.startswith(f"__{rank}_") or (rank == 0 and path.name == ".metadata")
    }
    entries: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(entries, mine)
    if rank == 0:
        files = {name: entry for part in entries for name, entry in part.items()}
        _write_durably(temporary / MANIFEST, {"step": step, **about, "files": files})
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync_folder(folder)
        _write_durably(folder / "latest", {"checkpoint": final.name})
    dist.barrier()
    return final


def prune(folder: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints, and what unfinished saves left."""
    for path in folder.glob("step_*.tmp"):
        shutil.rmtree(path)
    for path in _listed(folder)[keep_last:]:
        shutil.rmtree(path)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files are what its manifest says, or None where there is none.

    Raises InputError where there are checkpoints but not one of them is whole: starting over
    without a word would be worse.
    """
    listed = _listed(folder)
    problems = []
    for path in listed:
        problem = verify(path)
        if problem is None:
            return path, read_manifest(path)
        problems.append(problem)
    if problems:
        raise InputError(
            f"no checkpoint in {folder} is whole, {len(problems)} were looked at; the newest: "
            f"{problems[0]} Remove the folder to start over."
        )
    return None


def find(folder: Path, step: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a step, or of `latest`; raises InputError where it is not there."""
    if step == "latest":
        found = newest(folder)
        if found is None:
            raise InputError(f"{folder} holds no checkpoint: train first, or name another run.")
        return found
    path = folder / f"step_{step}"
    if not path.is_dir():
        known = ", ".join(p.name.removeprefix("step_") for p in _listed(folder)) or "none"
        raise InputError(f"{path} does not exist, expected one of the steps: {known}.")
    problem = verify(path)
    if problem:
        raise InputError(problem)
    return path, read_manifest(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint."""
    return json.loads((path / MANIFEST).read_text())


def verify(path: Path) -> str | None:
    """None where every file of a checkpoint has its size and hash, else what is wrong."""
    try:
        files = read_manifest(path)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{path / MANIFEST} cannot be read ({error})."
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{file} is missing."
        if file.stat().st_size != entry["bytes"]:
            return f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}."
        if _sha256(file) != entry["sha256"]:
            return f"{file} does not have the sha256 of its manifest."
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fills a split model and its optimizer, whatever layout the checkpoint was written in."""
    weights, states = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": states}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


def load_weights(path: Path, model: nn.Module) -> None:
    """Fills an unsplit model on one process, without a process group."""
    state = {"model": dict(model.state_dict())}
    assert not any(isinstance(tensor, DTensor) for tensor in state["model"].values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=path, no_dist=True)
    model.load_state_dict(state["model"])


def _listed(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, newest step first."""
    found = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _durable_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write_durably(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
