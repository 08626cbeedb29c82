"""Turns on torch's flight recorder, and writes what it has recorded when a run hangs.

The recorder keeps the last collectives of a rank with their sizes and states. NCCL's own watchdog
would write them after the timeout of a collective, but `health.watchdog` ends the process before
that, and therefore writes them itself. `torchfrtrace` compares the files of all ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ENTRIES = 20_000
"""Number of collectives that a rank keeps. They cover a few steps of an 8B model, in a few MB."""
FILE_PREFIX = "TORCH_FR_DUMP_TEMP_FILE"
"""Environment variable with the start of the files' names; the rank follows."""


def turn_on_flight_recorder(run_dir: str) -> None:
    """Sets the variables that torch's process groups read, unless the user has set them.

    Each rank writes to `<run_dir>/logs/flight_recorder_<rank>`.
    """
    prefix = str(Path(run_dir).absolute() / "logs" / "flight_recorder_")
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(ENTRIES)),
        (FILE_PREFIX, prefix),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        os.environ.setdefault(name, value)


def dump(rank: int, device: torch.device) -> Path | None:
    """Writes all recorded collectives of this rank, as a pickle that `torchfrtrace` reads.

    The Python stack of each collective is left out, since torch takes seconds to look it up.
    Returns the file, or None if this torch has no recorder for the device.
    """
    record = _recorder(device, "")
    if record is None or FILE_PREFIX not in os.environ:
        return None
    path = Path(f"{os.environ[FILE_PREFIX]}{rank}")
    path.write_bytes(record(True, False))
    return path


def last_collectives(device: torch.device, number: int = 3) -> list[dict[str, Any]]:
    """Returns the last collectives in the recorder, oldest first."""
    record = _recorder(device, "_json")
    try:
        entries = json.loads(record(True, False))["entries"] if record else []
    except (RuntimeError, ValueError, KeyError):
        return []
    keys = ("collective_seq_id", "process_group", "profiling_name", "input_sizes", "state")
    return [{key: e.get(key) for key in keys} for e in entries[-number:]]


def _recorder(device: torch.device, suffix: str) -> Callable[..., Any] | None:
    """Returns torch's function that returns the record.

    NCCL has a recorder of its own; the other one knows only what gloo did, on the CPU.
    """
    name = "_dump_nccl_trace" if device.type == "cuda" else "_dump_fr_trace"
    return getattr(torch._C._distributed_c10d, name + suffix, None)
