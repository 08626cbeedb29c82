"""Reads the hollow GPU's record: kernels, copies, waits, collectives and allocations, in order."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property


@dataclass(frozen=True)
class Wait:
    """A call that waits for the device.

    what: stream, event, device or copy.
    thread: main, autograd or other, such as one that stages a checkpoint.
    queued: number of kernels that the device still has to run when the wait is over; 0 if it is
        idle then.
    """

    what: str
    thread: str
    queued: int


class Trace:
    """Calls to the GPU, one per line as `library/*.c` writes them, such as `wait stream main 0`."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def of(self, *kinds: str) -> Iterator[list[str]]:
        """Yields the fields after the kind, for each line of one of the kinds."""
        for line in self.lines:
            kind, *fields = line.split(" ")
            if kind in kinds:
                yield fields

    def between(self, first: str, last: str) -> Trace:
        """Returns the calls between two marks."""
        start, end = self.lines.index(f"mark {first}"), self.lines.index(f"mark {last}")
        return Trace([line for line in self.lines[start + 1 : end] if line[:5] != "mark "])

    @cached_property
    def kernels(self) -> Counter[str]:
        """Number of launches per kernel, by `short_name`."""
        return Counter(short_name(fields[0]) for fields in self.of("kernel"))

    @cached_property
    def blocks(self) -> Counter[str]:
        """Number of thread blocks per kernel, by `short_name`."""
        total: Counter[str] = Counter()
        for name, x, y, z, _ in self.of("kernel"):
            total[short_name(name)] += int(x) * int(y) * int(z)
        return total

    @cached_property
    def refused(self) -> list[str]:
        """Launches that an H200 refuses (grid, block or shared memory), and calls in a capture."""
        return [short_name(fields[0]) for fields in self.of("refused")]

    @cached_property
    def products(self) -> Counter[str]:
        """Number of matrix products per shape, such as `lt 128 512 64`."""
        return Counter(" ".join(fields) for fields in self.of("product"))

    @cached_property
    def collectives(self) -> Counter[str]:
        """Number of collectives per name, such as all_reduce."""
        return Counter(fields[0] for fields in self.of("collective"))

    @cached_property
    def collective_bytes(self) -> Counter[str]:
        """Bytes that this rank passes to collectives, per name."""
        total: Counter[str] = Counter()
        for name, size, *_ in self.of("collective"):
            total[name] += int(size)
        return total

    @cached_property
    def copies(self) -> Counter[str]:
        """Number of copies per direction: h2d, d2h or d2d, with `-pageable` if not pinned."""
        return Counter(fields[0] for fields in self.of("copy"))

    @cached_property
    def copied_bytes(self) -> Counter[str]:
        """Bytes copied, per direction."""
        total: Counter[str] = Counter()
        for direction, size, *_ in self.of("copy"):
            total[direction] += int(size)
        return total

    @cached_property
    def pageable(self) -> list[str]:
        """Copies between the device and memory that is not pinned, which block the host."""
        return [" ".join(fields) for fields in self.of("copy") if "pageable" in fields[0]]

    @cached_property
    def waits(self) -> list[Wait]:
        """All waits, of all threads."""
        return [Wait(what, who, int(queued)) for what, who, queued in self.of("wait")]

    def stalls(self, queued: int = 1) -> list[Wait]:
        """Returns the waits of training itself after which the device has too little to do.

        queued: kernels that must be left to run. For an event of the step before, these are the
            kernels of a whole step.
        """
        return [wait for wait in self.waits if wait.thread != "other" and wait.queued < queued]

    @cached_property
    def allocations(self) -> Counter[str]:
        """Bytes allocated from the driver, per `device` and `pinned`, and `free`: all are slow."""
        total: Counter[str] = Counter()
        for where, size, *_ in self.of("allocate"):
            total[where] += int(size)
        for _, size, *_ in self.of("free"):
            total["free"] += int(size)
        return total


@cache
def demangle(name: str) -> str:
    """Returns the C++ declaration that a symbol names; other names as they are."""
    if not name.startswith("_Z"):
        return name
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    made = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    if not made:
        return name
    text = ctypes.string_at(made).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(made))
    return text


FUNCTOR = re.compile(r"(\w*(?:Functor|_kernel_cuda|_kernel_impl|_cuda_kernel|gpu_kernel\w*|Op))\b")


@cache
def short_name(symbol: str) -> str:
    """Returns a kernel's name without its types, with the functor that tells such kernels apart.

    For example `vectorized_elementwise_kernel:MulFunctor`.
    """
    declared = demangle(symbol)
    if declared == symbol:
        return symbol
    declared = declared.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = re.split(r"[<(]", declared, maxsplit=1)[0].rsplit("::", 1)[-1]
    functors = [found for found in FUNCTOR.findall(declared) if found != name]
    return f"{name}:{functors[0]}" if functors else name
