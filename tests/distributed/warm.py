"""Ranks forked from a process that has made the slow imports: a layout costs its steps, not ten
seconds of imports for each of its processes.

`python -m tests.distributed.warm` reads a JSON line {"arguments", "processes", "folder",
"environment"} for each run and answers with the exit codes of its ranks, once all have ended; what
they said is in <folder>/rank<n>.txt. The ranks are processes as `torchrun` would start them.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """codes: of all ranks; said: by rank 0."""

    codes: list[int]
    said: str


class Warm:
    """The process that forks. modules: that runs will import, beside the trainer; patience: of a
    run, in seconds."""

    def __init__(self, root: Path, *modules: str, patience: int = TIMEOUT_SECONDS) -> None:
        self.patience = patience
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.warm", *modules],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], processes: int, folder: Path, **environment: str) -> Ended:
        """`torchrun --nproc-per-node processes -m arguments...`; output goes to folder."""
        folder.mkdir(parents=True, exist_ok=True)
        task = {"arguments": arguments, "processes": processes, "folder": str(folder)}
        task |= {"environment": environment, "patience": self.patience}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        codes = json.loads(self.process.stdout.readline())
        return Ended(codes, (folder / "rank0.txt").read_text())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    """Forks the ranks of one run after the other."""
    import pretrain.train  # noqa: F401  the slow imports

    for module in sys.argv[1:]:
        importlib.import_module(module)

    for line in sys.stdin:
        task = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [_fork(rank, port, task) for rank in range(task["processes"])]
        print(json.dumps(_wait(ranks)), flush=True)


def _fork(rank: int, port: int, task: dict[str, Any]) -> int:
    arguments, processes, folder = task["arguments"], task["processes"], Path(task["folder"])
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(task["patience"])  # ends the rank, and with it the run
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **task["environment"],
        }
        said = os.open(folder / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(ranks: list[int]) -> list[int]:
    """Exit codes; where a rank fails, the others are ended."""
    codes = dict.fromkeys(ranks, 0)
    left = set(ranks)
    while left:
        rank, status = os.wait()
        codes[rank] = os.waitstatus_to_exitcode(status)
        left.discard(rank)
        if codes[rank]:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return list(codes.values())


if __name__ == "__main__":
    main()
