"""Writes and reads `outcome.json` of a run folder, which states how the last start ended.

torchrun turns every exit code except 0 into 1, so programs that restart runs read the code from
this file.
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

from conf.errors import EXIT_DONE, EXIT_FAILED, InputError
from pretrain.processes import Processes, barrier

FILE = "outcome.json"
FINISHED, STOPPED = "finished", "stopped"
"""Causes of a run that ends with exit code 0: all steps are done, or `stop_after` was reached."""
BEGUN = ("config.yaml", "slurm", "logs")
"""Names of files and folders, at least one of which a run or its launcher writes to its folder.

A start that is refused writes its outcome only if the folder contains one of them."""


def write_outcome(run_dir: Path, code: int, cause: str) -> None:
    """Writes the outcome into the folder of a run that has started before.

    Only the first rank to write counts, since the other ranks fail because that rank is gone.
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
    """Returns the content of the file, or None if it is missing or cannot be read."""
    try:
        found = json.loads((run_dir / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Outcome:
    """The cause of a successful end, which the run sets."""

    cause: str = FINISHED


@contextmanager
def writing_outcome(run_dir: Path, processes: Processes) -> Iterator[Outcome]:
    """Writes the outcome of the run inside the `with` block, which every rank enters.

    Rank 0 writes a successful end, and the first rank that fails writes its error. There is no file
    while the run is active, or after it was killed.
    """
    if processes.is_main:
        with suppress(OSError):  # a folder that cannot be written is refused by the checks
            (run_dir / FILE).unlink(missing_ok=True)
    barrier()
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
