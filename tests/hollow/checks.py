"""Checks that every rehearsed run must pass; `test_faults.py` shows that they can fail."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch._inductor.utils import clear_caches

from tests.hollow.harness import Rehearsal

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def check_never_waits(run: Rehearsal) -> None:
    """Raises AssertionError if the loop waits for the device, or copies in a way that waits.

    The host may wait for the numbers of the step before while the device has a whole step queued.
    """
    assert run.syncs == [], f"calls that wait: {run.syncs}"
    assert run.loop.pageable == [], f"copies that wait: {run.loop.pageable}"
    stalls = run.loop.stalls(queued=run.step.kernels.total() // 2)
    assert stalls == [], f"waits: {stalls}"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    name: name of the function.
    registers: registers per thread; an H200 has 255 at most.
    stack_bytes: bytes of local memory per thread, where registers are spilled.
    """

    name: str
    registers: int
    stack_bytes: int


@contextmanager
def fresh_kernels(folder: Path) -> Iterator[None]:
    """Makes Inductor and Triton compile everything again, and leave the binaries in a folder."""
    caches = dict.fromkeys(("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), str(folder))
    torch._dynamo.reset()
    clear_caches()
    with mock.patch.dict(os.environ, caches):
        yield
    torch._dynamo.reset()
    clear_caches()


def kernels_in(folder: Path) -> list[Kernel]:
    """Returns the kernels of all binaries in a cache folder of Triton."""
    found = []
    for path in sorted(folder.rglob("*.cubin")):
        command = [str(CUOBJDUMP), "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, registers, stack in re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+)", told):
            found.append(Kernel(name, int(registers), int(stack)))
    return found


def check_spills(kernels: list[Kernel], budget: dict[str, int]) -> None:
    """Raises AssertionError if a kernel uses more stack than its budget.

    Args:
        kernels: The compiled kernels; there must be some.
        budget: Bytes of stack per part of a kernel's name; other kernels have none.
    """
    assert kernels, "no kernel was compiled"
    over = [
        kernel
        for kernel in kernels
        if kernel.stack_bytes
        > max([0, *(bytes_ for part, bytes_ in budget.items() if part in kernel.name)])
    ]
    assert over == [], f"spills beyond the budget: {over}"
