"""`outcome.json` of a run folder: how the last process ended.

torchrun turns every exit code except 0 into 1, so programs that restart runs read the code here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from conf.errors import EXIT_DONE, EXIT_FAILED, InputError
from pretrain.processes import Processes

FILE = "outcome.json"
FINISHED, STOPPED = "finished", "stopped"
"""Causes of a run that ends with exit code 0: all steps are done, or `stop_after` was reached."""
BEGUN = ("config.yaml", "slurm", "logs")
"""Names in a folder that a run or its launcher has written. A refused start writes nowhere else."""


def write_outcome(run_dir: Path, code: int, cause: str) -> None:
    """Writes the file in the folder of a run that has begun.

    The first rank to write it knows the cause: the other ranks fail because this one is gone.
    """
    if any((run_dir / name).exists() for name in BEGUN):
        about = {"code": code, "cause": cause, "time": time.time()}
        temporary = run_dir / f"{FILE}.{os.environ.get('RANK', '0')}.tmp"
        temporary.write_text(json.dumps(about, indent=1) + "\n")
        try:
            with suppress(FileExistsError):
                os.link(temporary, run_dir / FILE)
        except OSError:  # a file system without links
            if not (run_dir / FILE).exists():
                temporary.replace(run_dir / FILE)
        temporary.unlink(missing_ok=True)


def read_outcome(run_dir: Path) -> dict[str, Any] | None:
    """Returns the content of the file, or None where there is none."""
    try:
        found = json.loads((run_dir / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Outcome:
    """Holds the cause of a successful end, which the run sets."""

    cause: str = FINISHED


@contextmanager
def writing_outcome(run_dir: Path, processes: Processes) -> Iterator[Outcome]:
    """Writes the outcome of the run that it wraps; all ranks use it.

    Rank 0 writes a successful end, and the first rank that fails writes its error. While the run
    is active, and after it was killed, there is no file.
    """
    if processes.is_main:
        with suppress(OSError):  # a folder that cannot be written is refused by the checks
            (run_dir / FILE).unlink(missing_ok=True)
    dist.barrier()
    who = f"rank {processes.rank}: " if processes.world_size > 1 else ""
    outcome = Outcome()
    try:
        yield outcome
    except InputError as error:
        with suppress(OSError):  # the error itself matters more
            write_outcome(run_dir, error.exit_code, str(error))
        raise
    except BaseException as error:
        with suppress(OSError):
            write_outcome(run_dir, EXIT_FAILED, f"{who}{type(error).__name__}: {error}")
        raise
    if processes.is_main:
        write_outcome(run_dir, EXIT_DONE, outcome.cause)
