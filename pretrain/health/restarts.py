"""Detects crash loops, which are repeated starts from the same checkpoint without progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from conf.errors import EXIT_GAVE_UP, RunAborted
from conf.files import write_text
from pretrain.processes import Processes

FILE = "restarts.json"


def count_start(run_dir: Path, step: int, at_most: int, processes: Processes) -> None:
    """Counts a start from `step`.

    Raises RunAborted on all ranks after more than `at_most` restarts without a later checkpoint;
    `at_most=0` allows any number.
    """
    path = run_dir / FILE
    answer: list[Any] = [0]
    if processes.is_main:
        try:
            before = json.loads(path.read_text())
            before = before if isinstance(before, dict) else {}
        except (OSError, ValueError):
            before = {}
        starts = before.get("starts", 0) + 1 if before.get("step") == step else 1
        write_text(path, json.dumps({"step": step, "starts": starts}))
        answer = [starts]
    dist.broadcast_object_list(answer, src=0)
    if at_most and answer[0] > at_most + 1:
        raise RunAborted(
            f"{run_dir} was started {answer[0] - 1} times from step {step} without reaching its "
            f"next checkpoint. Find the cause in the logs of these starts, then remove {path}.",
            EXIT_GAVE_UP,
        )


def reset_starts(run_dir: Path) -> None:
    """Resets the count after a run that ended as requested. Only rank 0 calls it."""
    (run_dir / FILE).unlink(missing_ok=True)
