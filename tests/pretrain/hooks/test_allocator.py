"""Memory that a step frees serves the next one."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from pretrain.hooks.allocator import keep_freed_memory

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (3, 48):  # below and above the 32 MiB that glibc always maps
        torch.ones(size * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory(sys.argv[1] == "keep")
# The heap grows for some steps, until blocks of both sizes have found their places.
print(min(faults_of_a_step() for _ in range(12)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no mallopt in this libc")
def test_a_step_on_a_cpu_takes_the_pages_of_the_step_before():
    found = {}
    for mode in ("keep", "default"):
        script = [sys.executable, "-c", SCRIPT, mode]
        done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True)
        found[mode] = int(done.stdout)
    pages = 48 * 2**20 // 4096 // 512  # if the kernel gives huge pages unasked
    assert found["keep"] < 20
    assert found["default"] >= pages
