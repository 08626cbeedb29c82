"""`outcome.json` of a run folder: how the last process ended. torchrun turns every exit code but 0
into 1; who starts runs again reads the code there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.errors import EXIT_DONE, EXIT_FAILED, InputError

BEGUN = ("config.yaml", "slurm", "logs")
"""The run's own, and folders of who launched it: a refused start leaves nothing elsewhere."""


def write_outcome(run_dir: Path, code: int, cause: str) -> None:
    """Replaces the file, where a run was begun or launched."""
    if any((run_dir / name).exists() for name in BEGUN):
        temporary = run_dir / "outcome.json.tmp"
        about = {"code": code, "cause": cause, "time": time.time()}
        temporary.write_text(json.dumps(about, indent=1) + "\n")
        temporary.replace(run_dir / "outcome.json")


@contextmanager
def writing_outcome(run_dir: Path, is_main: bool) -> Iterator[None]:
    """Around a whole run; rank 0 writes. While it runs, and after a kill, there is no file."""
    path = run_dir / "outcome.json"
    code, cause = EXIT_DONE, "finished"
    try:
        if is_main:
            path.unlink(missing_ok=True)
        yield
    except InputError as error:
        code, cause = error.exit_code, str(error)
        raise
    except BaseException as error:
        code, cause = EXIT_FAILED, f"{type(error).__name__}: {error}"
        raise
    finally:
        if is_main:
            write_outcome(run_dir, code, cause)
