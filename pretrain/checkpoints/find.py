"""Finds the checkpoint that a run resumes from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from conf.errors import InputError
from data_pipeline.store.storage import StorageError
from data_pipeline.store.threads import in_thread
from pretrain.checkpoints import commit, files, mirror
from pretrain.checkpoints.files import CheckpointError
from pretrain.processes import Processes, barrier

T = TypeVar("T")
VISIBLE_SECONDS = 60.0
WAIT_SECONDS = 30.0
Found = tuple[Path, dict[str, Any]]


def latest_common_checkpoint(
    folder: Path, processes: Processes, url: str | None = None
) -> Found | None:
    """Returns the newest complete checkpoint, the same on all ranks, or None for a new run.

    Every rank must call it, and verifies its share of the files. Rank 0 decides, and quarantines
    damaged checkpoints. Raises CheckpointError if there are checkpoints but none is complete, and
    StorageError if there are none and the mirror does not respond, because starting over silently
    would be worse.

    url: URL of a mirror in an object store. A checkpoint that is newer there, or damaged here, is
        downloaded. If the mirror does not respond, the newest local checkpoint is used.
    """
    problems: list[str] = []
    downloaded: set[int] = set()
    while True:
        name, bad = on_main(lambda: _candidate(folder, url, downloaded), processes)
        if name is None:
            if bad:
                problems += [f"{folder / one} is quarantined." for one in bad]
                raise no_complete_checkpoint(folder, problems)
            return None
        problem = verify_together(folder / name, processes)
        if problem is None:
            return folder / name, files.read_manifest(folder / name)
        problems.append(problem)
        if processes.is_main:
            moved = files.quarantine(folder / name)
            print(
                f"warning: {problem} The checkpoint was renamed to {moved.name}. Trying the "
                "previous one."
            )
        barrier()


def no_complete_checkpoint(folder: Path, problems: list[str]) -> CheckpointError:
    """Returns the error for a folder whose checkpoints are all damaged."""
    return CheckpointError(
        f"{folder} has no complete checkpoint. The newest: "
        f"{problems[0]} Remove the folder to start over."
    )


def latest_checkpoint(folder: Path) -> Found | None:
    """Returns the newest complete checkpoint, or None, without quarantining damaged ones.

    It is for a single process that only reads. Raises CheckpointError if there are checkpoints but
    none is complete.
    """
    problems = []
    for path in files.checkpoints_in(folder):
        problem = files.verify(path)
        if problem is None:
            return path, files.read_manifest(path)
        problems.append(problem)
    problems += [f"{path} is quarantined." for path in files.quarantined_in(folder)]
    if problems:
        raise no_complete_checkpoint(folder, problems)
    return None


def checkpoint_of_step(folder: Path, step: str) -> Found:
    """Returns the checkpoint of a step, or of `latest`. Raises InputError if there is none."""
    if step == "latest":
        found = latest_checkpoint(folder)
        if found is None:
            raise InputError(f"{folder} has no checkpoint. Train first, or give another run.")
        return found
    path = folder / f"step_{step}"
    if not path.is_dir():
        steps = [p.name.removeprefix("step_") for p in files.checkpoints_in(folder)]
        known = ", ".join(steps) or "none"
        raise InputError(f"{path} does not exist. Give a step that has a checkpoint: {known}.")
    problem = files.verify(path)
    if problem:
        raise CheckpointError(problem)
    return path, files.read_manifest(path)


def manifests(folder: Path, url: str | None) -> list[dict[str, Any]] | None:
    """Returns the manifests of a run's complete checkpoints, newest first, without reading states.

    They come from the folder or, if it has no checkpoints, from the newest one in the mirror at
    `url`. Returns None if there are no checkpoints.
    """
    here = files.checkpoints_in(folder)
    try:
        if here:
            return [files.read_manifest(path) for path in here if files.verdict(path) is None]
        if url and (steps := mirror.steps(url)):
            return [mirror.manifest(url, steps[0])]
    except (OSError, ValueError, StorageError):  # loading the checkpoint reports the error
        return []
    return None


def prepare_folder(folder: Path, processes: Processes) -> None:
    """Removes unfinished saves, and checks on every rank that the folder can be written to.

    Raises CheckpointError if it cannot, so that the problem is found before the first save.
    """
    problem: str | None = None
    if processes.is_main:
        commit.remove_unfinished(folder)
    try:
        commit.try_writing(folder, processes.rank)
    except OSError as error:
        problem = f"{error.strerror}: {error.filename or folder}"
    answers: list[Any] = [None] * processes.world_size
    dist.all_gather_object(answers, problem)
    for rank, found in enumerate(answers):
        if found is not None:
            raise CheckpointError(
                f"{folder} is not writable for rank {rank} ({found}). Make the folder writable, "
                "free disk space, or use another run_dir."
            )


def _candidate(folder: Path, url: str | None, downloaded: set[int]) -> tuple[str | None, list[str]]:
    """Returns the newest checkpoint, local or downloaded, and the names of quarantined ones."""
    local = files.checkpoints_in(folder)
    newest_local = files.step_of(local[0].name) if local else None
    if url:
        try:
            remote = [step for step in mirror.steps(url) if step not in downloaded]
            if remote and (newest_local is None or remote[0] > newest_local):
                name = mirror.download(folder, url, remote[0]).name
                downloaded.add(remote[0])
                return name, []
        except StorageError as error:
            if not local:
                raise
            print(f"warning: {error} Resuming from the checkpoints in {folder}.")
    quarantined = [path.name for path in files.quarantined_in(folder)]
    return (local[0].name if local else None), quarantined


def on_main(call: Callable[[], T], processes: Processes) -> T:
    """Returns the result of rank 0 on all ranks. An InputError is also raised on all ranks.

    Rank 0 may take arbitrarily long, because a broadcast every WAIT_SECONDS keeps the other ranks
    from timing out.
    """
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


def verify_together(path: Path, processes: Processes) -> str | None:
    """Returns what is wrong with a checkpoint, or None, the same on all ranks."""
    if not processes.is_main:  # a network file system may show new names late
        deadline = time.monotonic() + VISIBLE_SECONDS
        while not path.is_dir() and time.monotonic() < deadline:
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
