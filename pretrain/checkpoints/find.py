"""Which checkpoint to go on from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from conf.errors import EXIT_CHECKPOINT, InputError
from pretrain.checkpoints import commit, files
from pretrain.distributed import Processes

VISIBLE_SECONDS = 60.0
Found = tuple[Path, dict[str, Any]]


class CheckpointError(InputError):
    """Checkpoints that cannot be read or written; commands end with `EXIT_CHECKPOINT`."""

    exit_code = EXIT_CHECKPOINT


def newest_agreed(folder: Path, processes: Processes) -> Found | None:
    """The newest whole checkpoint, or None where there never was one; every rank calls it.

    Each rank reads its share of the files. Rank 0 decides, and puts the bad ones out of the way.
    Raises CheckpointError where there are checkpoints but not one of them is whole: starting over
    without a word would be worse.
    """
    problems: list[str] = []
    while True:
        answer: list[Any] = [None]
        if processes.is_main:
            here = files.listed(folder)
            answer = [(here[0].name if here else None, [p.name for p in files.quarantined(folder)])]
        dist.broadcast_object_list(answer, src=0)
        name, bad = answer[0]
        if name is None:
            if bad:
                raise nothing_whole(
                    folder, [*problems, *(f"{folder / n} is set aside." for n in bad)]
                )
            return None
        problem = _verify_together(folder / name, processes)
        if problem is None:
            return folder / name, files.read_manifest(folder / name)
        problems.append(problem)
        if processes.is_main:
            moved = files.quarantine(folder / name)
            print(f"warning: {problem} It is now {moved.name}; going back to the one before it.")
        dist.barrier()


def nothing_whole(folder: Path, problems: list[str]) -> CheckpointError:
    """The error where every checkpoint is bad."""
    return CheckpointError(
        f"no checkpoint in {folder} is whole, {len(problems)} were looked at; the newest: "
        f"{problems[0]} Remove the folder to start over."
    )


def newest(folder: Path) -> Found | None:
    """As `newest_agreed` for one process that only reads: nothing is moved."""
    problems = []
    for path in files.listed(folder):
        problem = files.verify(path)
        if problem is None:
            return path, files.read_manifest(path)
        problems.append(problem)
    problems += [f"{path} is set aside." for path in files.quarantined(folder)]
    if problems:
        raise nothing_whole(folder, problems)
    return None


def find(folder: Path, step: str) -> Found:
    """The checkpoint of a step, or of `latest`; raises InputError where it is not there."""
    if step == "latest":
        found = newest(folder)
        if found is None:
            raise InputError(f"{folder} holds no checkpoint: train first, or name another run.")
        return found
    path = folder / f"step_{step}"
    if not path.is_dir():
        steps = [p.name.removeprefix("step_") for p in files.listed(folder)]
        known = ", ".join(steps) or "none"
        raise InputError(f"{path} does not exist, expected one of the steps: {known}.")
    problem = files.verify(path)
    if problem:
        raise CheckpointError(problem)
    return path, files.read_manifest(path)


def prepare_folder(folder: Path, processes: Processes) -> None:
    """Sweeps what interrupted saves left, and tries on every rank whether a checkpoint could be
    written. Raises CheckpointError where not: better now than after the first hours."""
    problem: str | None = None
    if processes.is_main:
        commit.sweep(folder)
    try:
        commit.probe(folder, processes.rank)
    except OSError as error:
        problem = f"{error.strerror}: {error.filename or folder}"
    answers: list[Any] = [None] * processes.world_size
    dist.all_gather_object(answers, problem)
    for rank, found in enumerate(answers):
        if found is not None:
            raise CheckpointError(
                f"rank {rank} cannot write checkpoints to {folder} ({found}): make it writable, "
                "make room, or take another run_dir."
            )


def _verify_together(path: Path, processes: Processes) -> str | None:
    if not processes.is_main:  # a network file system may show new names late
        ends = time.monotonic() + VISIBLE_SECONDS
        while not (path / files.MANIFEST).is_file() and time.monotonic() < ends:
            time.sleep(0.1)
    mine = files.verify(path, (processes.rank, processes.world_size))
    problems: list[Any] = [None] * processes.world_size
    dist.all_gather_object(problems, mine)
    found = [problem for problem in problems if problem is not None]
    answer = [found[0] if found else None]
    if found and processes.is_main:
        answer = [files.verify(path)]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]
