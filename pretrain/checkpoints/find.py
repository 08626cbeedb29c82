"""Which checkpoint to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from conf.errors import InputError
from data_pipeline.store.storage import StorageError
from data_pipeline.store.threads import in_thread
from pretrain.checkpoints import commit, files
from pretrain.checkpoints import mirror as copies
from pretrain.checkpoints.files import CheckpointError
from pretrain.processes import Processes

T = TypeVar("T")
VISIBLE_SECONDS = 60.0
WAIT_SECONDS = 30.0
Found = tuple[Path, dict[str, Any]]


def newest_agreed(folder: Path, processes: Processes, copy: str | None = None) -> Found | None:
    """The newest whole checkpoint, or None where there never was one; every rank calls it.

    copy: a URL that holds copies; what is newer there, or bad here, is brought from it; where that
    does not answer, what is here must do. Each rank reads its share of the files. Rank 0 decides,
    and puts the bad ones out of the way. Raises CheckpointError where there are checkpoints but not
    one of them is whole, StorageError where none is here and the copies are out of reach: starting
    over without a word would be worse.
    """
    problems: list[str] = []
    brought: set[int] = set()
    while True:
        name, bad = _on_main(lambda: _candidate(folder, copy, brought), processes)
        if name is None:
            if bad:
                raise nothing_whole(folder, problems + [f"{folder / n} is set aside." for n in bad])
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


def _candidate(folder: Path, copy: str | None, brought: set[int]) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is here, or comes from the copy, and those that are set aside."""
    here = files.listed(folder)
    newest_here = files.step_of(here[0].name) if here else None
    if copy:
        try:
            there = [step for step in copies.steps(copy) if step not in brought]
            if there and (newest_here is None or there[0] > newest_here):
                name = copies.bring(folder, copy, there[0]).name
                brought.add(there[0])
                return name, []
        except StorageError as error:
            if not here:
                raise
            print(f"warning: {error} Going on from what is in {folder}.")
    return (here[0].name if here else None), [path.name for path in files.quarantined(folder)]


def _on_main(call: Callable[[], T], processes: Processes) -> T:
    """What rank 0 finds, however long that takes: the others' patience is renewed meanwhile. An
    InputError is raised on all."""
    future = in_thread(call) if processes.is_main else None
    while True:
        answer: list[Any] = [None]
        if future is not None:
            try:
                answer = [(future.result(WAIT_SECONDS), None)]
            except InputError as error:
                answer = [(None, error)]
            except TimeoutError:
                pass
        dist.broadcast_object_list(answer, src=0)
        if answer[0] is not None:
            found, refused = answer[0]
            if refused is not None:
                raise refused
            return found


def _verify_together(path: Path, processes: Processes) -> str | None:
    if not processes.is_main:  # a network file system may show new names late
        ends = time.monotonic() + VISIBLE_SECONDS
        while not path.is_dir() and time.monotonic() < ends:
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
