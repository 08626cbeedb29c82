"""`python -m eval.chat.guard COMMAND ...`: runs a server that never outlives its parent.

A server such as vLLM starts processes of its own, which survive if only the server is ended. This
process adopts them all. It ends them at SIGTERM, when the server exits, and when its standard
input closes, which happens however the parent ends, even by SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
AWAITED = {signal.SIGTERM, signal.SIGCHLD}


def main() -> int:
    """Runs the command, and returns its exit code once no process of it is left."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then ends this
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Blocked, the signals wait for sigwait, so that none is lost between two lines.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    server = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_prepare
    )
    threading.Thread(target=_watch_parent, daemon=True).start()
    while server.poll() is None and signal.sigwait(AWAITED) != signal.SIGTERM:
        _reap(server.pid)
    _end_all(server)
    return server.wait()


def _prepare() -> None:
    """Runs in the new process: it ends if this one is killed, and receives all signals."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_all(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and all processes below this one: SIGTERM first, SIGKILL after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    _send(signal.SIGTERM, server)
    while _is_left(server):
        left = deadline - time.monotonic()
        if left <= 0:
            _send(signal.SIGKILL, server)
        signal.sigtimedwait({signal.SIGCHLD}, min(max(left, 0.1), 1.0))


def _is_left(server: subprocess.Popen[bytes]) -> bool:
    """Returns whether the server or one of its processes runs."""
    ended = server.poll() is not None
    _reap(server.pid)
    return not ended or bool(descendants(os.getpid()))


def _send(number: int, server: subprocess.Popen[bytes]) -> None:
    """Sends a signal to the group of the server, and to every process below this one."""
    if server.poll() is None:
        os.killpg(server.pid, number)
    for process in descendants(os.getpid()):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _reap(server: int) -> None:
    """Collects adopted processes that have ended; the server's code is collected by its Popen."""
    for process in descendants(os.getpid(), ended=True):
        if process != server:
            try:
                os.waitpid(process, os.WNOHANG)
            except ChildProcessError:  # a child of another process below this one
                continue


def descendants(root: int, *, ended: bool = False) -> list[int]:
    """Returns the processes below `root`: those that run, or those that have ended uncollected."""
    children: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the program, in brackets, may itself have spaces and brackets.
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        children.setdefault(int(parent), []).append((int(path.parent.name), state))
    found, below = [], [root]
    while below:
        for process, state in children.get(below.pop(), []):
            below.append(process)
            if (state in "ZX") == ended:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
