"""NCCL's flight recorder: the last collectives of each rank, dumped where one hangs."""

from __future__ import annotations

import os
from pathlib import Path

ENTRIES = 20_000
"""Collectives that a rank remembers: some steps of a model of 8B; a few MB."""


def turn_on_flight_recorder(run_dir: str) -> None:
    """Sets the environment that NCCL's process group reads when it is made; what the user has set
    stays. `torchfrtrace` reads the dumps, one a rank, `<run_dir>/logs/flight_recorder_<rank>`."""
    prefix = str(Path(run_dir).absolute() / "logs" / "flight_recorder_")
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(ENTRIES)),
        ("TORCH_FR_DUMP_TEMP_FILE", prefix),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        os.environ.setdefault(name, value)
