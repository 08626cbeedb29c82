"""The keys of a ladder on which its finding depends."""

from __future__ import annotations

from typing import Protocol


class LadderKeys(Protocol):
    """Keys of `launch/studies/kinds/ladder.py:Study`, which documents them."""

    decay_fraction: float
    rule: str
    counted: str
    draws: int
    flops: float | None
    target_runs: list[str]
