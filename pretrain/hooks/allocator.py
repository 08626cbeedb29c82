"""Keeps memory that a step frees for the next step, where a CPU trains.

The C library returns every large block to the kernel when it is freed. The activations of the next
step then lie in new pages, which the kernel clears one by one while the training waits: on two
cores and a model of 19M parameters 90,000 page faults per step, up to a tenth of a step in bf16.
The steps of a run need the same blocks again and again, so they are kept for the time of the
training, and the memory in use at the peak of a step stays the same.
"""

from __future__ import annotations

import ctypes

from pretrain.hooks import Hook, TrainerView

# Names and numbers are those of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MMAP_MAX_DEFAULT = 65536
TRIM_DEFAULT = 128 * 1024
KEEP_ALL = 2**31 - 1


class Allocator(Hook):
    """Keeps freed memory between the first and the last step of a run on a CPU."""

    def on_start(self, trainer: TrainerView) -> None:
        """Returns to the system what the set-up freed, and keeps what is freed from here on."""
        if trainer.processes.device.type == "cpu":
            keep_freed_memory(True)

    def on_leave(self, trainer: TrainerView) -> None:
        """Returns to the C library's defaults."""
        if trainer.processes.device.type == "cpu":
            keep_freed_memory(False)


def keep_freed_memory(keep: bool) -> bool:
    """Sets whether glibc keeps freed blocks for later ones; returns False where the C library
    has no such setting (musl, macOS), and changes nothing there."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        return False
    library.malloc_trim(0)
    kept = library.mallopt(M_TRIM_THRESHOLD, KEEP_ALL if keep else TRIM_DEFAULT)
    # Blocks above 32 MiB would be mapped, and unmapped when freed, whatever the threshold is.
    mapped = library.mallopt(M_MMAP_MAX, 0 if keep else MMAP_MAX_DEFAULT)
    return bool(kept and mapped)
