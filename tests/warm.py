"""Forks ranks from a process that has made the slow imports.

A layout then costs its steps, and not ten seconds of imports for each of its processes.

`python -m tests.warm` reads one JSON line {"arguments", "processes", "folder", "environment",
"patience"} per run and answers with the exit codes of its ranks, once all have ended. The output of
a rank is in <folder>/rank<n>.txt, its errors in a separate file if "apart" is set. The ranks are
processes like those that `torchrun` starts; with "processes" 0 there is one, like `python -m`.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.patience import limit
from tests.ports import free_port

TIMEOUT_SECONDS = 240
GRACE_SECONDS = 1.0
"""Seconds in which ranks have to end by themselves after another has failed."""


@dataclass(frozen=True)
class Ended:
    """The end of a run.

    Attributes:
        codes: Exit codes of all ranks.
        said: Output of rank 0.
    """

    codes: list[int]
    said: str


class Warm:
    """The process that forks.

    Attributes:
        modules: Modules to import in addition to the trainer.
        patience: Time limit of a run, in seconds of a fast, idle machine.
    """

    def __init__(self, root: Path, *modules: str, patience: float = TIMEOUT_SECONDS) -> None:
        self.patience = patience
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", *modules],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], processes: int, folder: Path, **environment: str) -> Ended:
        """Runs `torchrun --nproc-per-node processes -m arguments...`; writes output to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        codes = self._ask(
            arguments=arguments,
            processes=processes,
            folder=str(folder),
            environment=environment,
            patience=math.ceil(limit(self.patience)),
        )
        return Ended(codes, (folder / "rank0.txt").read_text())

    def command(
        self, arguments: list[str], processes: int, timeout: float, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python -m arguments...`, under torchrun with `processes` > 0; returns its output.

        Raises subprocess.TimeoutExpired.
        """
        with tempfile.TemporaryDirectory() as folder:
            codes = self._ask(
                arguments=arguments,
                processes=processes,
                folder=folder,
                environment=environment,
                patience=math.ceil(limit(timeout)),
                apart=True,
                grace=GRACE_SECONDS,
            )
            # The ranks that a signal has ended come last: the others only miss them.
            order = sorted(range(len(codes)), key=lambda rank: (codes[rank] < 0, rank))
            said, errors = (
                "".join((Path(folder) / f"rank{rank}.{kind}").read_text() for rank in order)
                for kind in ("txt", "err")
            )
        if -signal.SIGALRM in codes:
            raise subprocess.TimeoutExpired(arguments, timeout, said, errors)
        code = codes[0] if processes == 0 else int(any(codes))  # as torchrun
        if processes:
            errors += "".join(f"rank {n} exitcode  : {c}\n" for n, c in enumerate(codes) if c)
        return subprocess.CompletedProcess(arguments, code, said, errors)

    def _ask(self, **task: Any) -> list[int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(limit(60))


def main() -> None:
    """Forks the ranks of one run after the other."""
    import pretrain.train  # noqa: F401  the slow imports

    for module in sys.argv[1:]:
        importlib.import_module(module)

    for line in sys.stdin:
        task = json.loads(line)
        port = free_port()
        ranks = [_fork(rank, port, task) for rank in range(max(1, task["processes"]))]
        print(json.dumps(_wait(ranks, task.get("grace", 0.0))), flush=True)


def _fork(rank: int, port: int, task: dict[str, Any]) -> int:
    arguments, processes, folder = task["arguments"], task["processes"], Path(task["folder"])
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(task["patience"])  # ends the rank, and with it the run
        os.environ |= task["environment"]
        if "HEADWATER_FAULT" in task["environment"]:
            importlib.import_module("tests.faults.writer_faults").install()
        if processes:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        said = _file(folder / f"rank{rank}.txt")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(_file(folder / f"rank{rank}.err") if task.get("apart") else said, 2)
        faulthandler.enable()  # an aborted rank says where it was
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _wait(ranks: list[int], grace: float) -> list[int]:
    """Returns exit codes; if a rank fails, the others are ended after a grace period."""
    codes = dict.fromkeys(ranks, 0)
    left = set(ranks)
    ends = math.inf
    while left:
        rank, status = os.waitpid(-1, 0 if ends == math.inf else os.WNOHANG)
        if rank:
            codes[rank] = os.waitstatus_to_exitcode(status)
            left.discard(rank)
            if codes[rank]:
                ends = min(ends, time.monotonic() + grace)
        elif time.monotonic() < ends:
            time.sleep(0.01)
        else:
            for other in left:
                os.kill(other, signal.SIGKILL)
            ends = math.inf
    return list(codes.values())


if __name__ == "__main__":
    main()
