"""Threads are reused by later calls, and a forked process starts its own."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from data_pipeline.store.threads import in_thread
from tests.conftest import ROOT
from tests.patience import limit

FORKS = """
import os
from data_pipeline.store.threads import in_thread
in_thread(lambda: 1).result(20)
child = os.fork()
code = in_thread(lambda: 7).result(20) if child == 0 else os.waitpid(child, 0)[1] >> 8
os._exit(code)
"""


def test_a_thread_that_is_idle_takes_the_next_call():
    def fail():
        raise ValueError("no")

    assert in_thread(lambda: 1).result(limit(20)) == 1
    with pytest.raises(ValueError, match="no"):
        in_thread(fail).result(limit(20))
    first = in_thread(threading.get_ident).result(limit(20))
    assert in_thread(threading.get_ident).result(limit(20)) == first
    held = threading.Event()
    busy = in_thread(lambda: held.wait(limit(20)) and threading.get_ident())
    assert in_thread(threading.get_ident).result(limit(20)) != first
    held.set()
    assert busy.result(limit(20)) == first


def test_a_fork_has_threads_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS], cwd=ROOT, timeout=limit(60)
    )
    assert done.returncode == 7
