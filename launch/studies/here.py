"""Starts the runs of a study as processes on this machine."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from launch.studies.commands import RunCommand

LOOK_SECONDS = 2.0
"""Interval at which a waiting study looks for the file STOP."""
PR_SET_PDEATHSIG = 1


class Here:
    """The processes of the runs.

    A run is stopped, with a checkpoint, when the study's process ends, however that happens.

    Args:
        folder: Folder of the study.
        nproc: Processes per run.
        lock: Descriptor of the study's lock, which every run holds open.
    """

    def __init__(self, folder: Path, nproc: int, lock: int) -> None:
        self.logs = folder / "logs"
        self.nproc = nproc
        self.lock = lock
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def active(self, names: list[str]) -> set[str]:
        """Returns the names of the runs that have not been reported as ended."""
        return set(self.processes)

    def start(self, command: RunCommand) -> str:
        """Starts a run, and returns where its output is."""
        self.logs.mkdir(parents=True, exist_ok=True)
        (Path(command.settings.run_dir) / "outcome.json").unlink(missing_ok=True)
        log = self.log(command.run.name)
        with log.open("ab") as file:
            self.processes[command.run.name] = subprocess.Popen(
                command_line(command, self.nproc),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runs through the study only
                pass_fds=[self.lock],
                preexec_fn=_end_with_parent,
            )
        return f"log {log}"

    def log(self, name: str) -> Path:
        """Returns the file with the output of a run."""
        return self.logs / f"{name}.log"

    def wait(self) -> dict[str, tuple[int, str]]:
        """Waits a little for a run to end; returns exit codes and last lines of those that did."""
        handles = [os.pidfd_open(process.pid) for process in self.processes.values()]
        try:
            select.select(handles, [], [], LOOK_SECONDS)
        finally:
            for handle in handles:
                os.close(handle)
        ended = {}
        for name, process in list(self.processes.items()):
            code = process.poll()
            if code is not None:
                del self.processes[name]
                killed = code < 0
                cause = f"killed by signal {-code}" if killed else last_line(self.log(name))
                ended[name] = (128 - code if killed else code), cause
        return ended

    def stop(self) -> None:
        """Asks all runs to save and stop, and waits for their end."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait()


def command_line(command: RunCommand, nproc: int) -> list[str]:
    """Returns the command that a user would type for the run."""
    if nproc == 1:
        return [sys.executable, "-m", "pretrain", *command.overrides]
    return [sys.executable, "-m", "launch", "local", f"nproc={nproc}", "--", *command.overrides]


def last_line(log: Path) -> str:
    """Returns the last line of a log that is not empty, without the word `error:`."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "there was no output"


def _end_with_parent() -> None:
    """Lets the kernel send SIGTERM to this process when the study's process ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
