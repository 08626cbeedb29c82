"""Time limits of tests.

They are written for the machine on which the tests were first run, and grow with how much slower
and busier this machine is: a limit only ends what hangs.

The speed is measured once per session; the workers of pytest-xdist read it from their environment.
The load is read at each call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

VARIABLE = "HEADWATER_TESTS_SLOWNESS"
LOOPS, LOOPS_SECONDS = 500_000, 0.030
PRODUCTS, PRODUCTS_SECONDS = 10, 0.022
"""CPU seconds of two pieces of work on one core of an AMD EPYC of the fifth generation."""
MOST = 20.0
"""Largest load that counts: the load average may include other containers on the same machine."""


def limit(seconds: float) -> float:
    """Returns the time limit for work that takes at most `seconds` on an idle, fast machine."""
    cores = len(os.sched_getaffinity(0))
    busy = max(1.0, os.getloadavg()[0] / cores)
    return seconds * min(slowness() * busy, MOST)


def slowness() -> float:
    """Returns how many times slower this machine computes, at least 1.

    It is measured unless this process or one that started it has done so.
    """
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{_measured():.2f}"
    return float(os.environ[VARIABLE])


def _measured() -> float:
    loops = _cpu_seconds(_loop) / LOOPS_SECONDS
    products = _cpu_seconds(_multiply) / PRODUCTS_SECONDS
    return max(1.0, loops, products)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Returns the smallest of three measurements.

    Other work on this machine is part of the load, and must not count twice.
    """
    found = []
    for _ in range(3):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def _loop() -> int:
    number = 0
    for index in range(LOOPS):
        number = (number * 31 + index) & 0xFFFFFFFF
    return number


def _multiply() -> None:
    matrix = np.ones((512, 512), np.float32)
    for _ in range(PRODUCTS):
        matrix @ matrix
