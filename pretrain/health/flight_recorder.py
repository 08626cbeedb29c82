"""Turns on NCCL's flight recorder, which dumps each rank's last collectives after a hang."""

from __future__ import annotations

import os
from pathlib import Path

ENTRIES = 20_000
"""Number of collectives that a rank keeps. They cover a few steps of an 8B model, in a few MB."""


def turn_on_flight_recorder(run_dir: str) -> None:
    """Sets the variables that NCCL's process group reads, unless the user has set them.

    Each rank dumps to `<run_dir>/logs/flight_recorder_<rank>`, which `torchfrtrace` reads.
    """
    prefix = str(Path(run_dir).absolute() / "logs" / "flight_recorder_")
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(ENTRIES)),
        ("TORCH_FR_DUMP_TEMP_FILE", prefix),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        os.environ.setdefault(name, value)
