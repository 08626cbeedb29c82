"""Runs a command of the project and kills it at a given point of its work.

`python -m tests.faults.killed EVENTS MODULE ARGUMENTS...` kills the process by SIGKILL at the
EVENTS-th call that the modules COUNTED make or receive, so the point does not depend on the load of
the machine. With EVENTS=0 the command ends by itself, and the number of events is printed last.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from types import FrameType
from typing import Any

COUNTED = (
    "conf/files.py",
    "data_pipeline/files.py",
    "tokenizing/work.py",
    "pretrain/teacher_cache/",
)
"""Parts of the paths of modules that write files and count what is done."""


class Events:
    """A profiler of Python that kills the process at one event."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Counts an event."""
        if any(part in frame.f_code.co_filename for part in COUNTED):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the command that the arguments give."""
    events = Events(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.setprofile(events)
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        if not events.last:
            print(f"events: {events.count}", flush=True)


if __name__ == "__main__":
    main()
