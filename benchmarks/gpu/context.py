"""The state that a worker keeps between the parts, and what is reset after each item."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoints.writer_process import WriterProcess

LOST_DEVICE = 3
"""Exit code of a worker whose device does not answer after an error in a kernel."""


@dataclass
class Context:
    """Settings of the session, and the process that writes checkpoints.

    Attributes:
        tiny: Whether to run everything with small shapes, to test the session itself.
        kit: Folder that `gpu_session.py --prepare` made.
        scratch: Folder for runs.
        writer: The process that writes checkpoints, forked before CUDA is initialized.
    """

    device: torch.device
    tiny: bool
    kit: Path
    scratch: Path
    writer: WriterProcess

    def wait(self) -> None:
        """Waits until the device has done all its work."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clean_up(self) -> None:
        """Frees what an item left behind, and ends the process if the device is lost."""
        import torch
        import torch.distributed as dist

        if self.device.type == "cuda":
            try:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
            except RuntimeError:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(LOST_DEVICE)
        if dist.is_initialized():
            dist.destroy_process_group()
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, work: Callable[[], Any], at_least: float = 0.3, turns: int = 5) -> float:
        """Returns the median over turns of the seconds per call, after two calls to warm up.

        A turn is long enough to hide the host's latency: all turns together take about `at_least`.
        """
        work()
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        once = time.perf_counter() - began
        calls = 1 if self.tiny else max(1, int(at_least / turns / once))
        found = []
        for _ in range(turns):
            began = time.perf_counter()
            for _ in range(calls):
                work()
            self.wait()
            found.append((time.perf_counter() - began) / calls)
        return median(found)


def setup(options: dict[str, Any]) -> Context:
    """Starts a worker: forks the process that writes, and selects the device."""
    from pretrain.checkpoints.writer_process import WriterProcess

    writer = WriterProcess()
    import torch

    torch.set_float32_matmul_precision("highest")  # float32 is the reference of comparisons
    return Context(
        torch.device(options["device"]),
        options["tiny"],
        Path(options["kit"]),
        Path(options["scratch"]),
        writer,
    )
