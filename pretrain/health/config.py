"""Settings of `health`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import InputError


@dataclass
class HealthConfig:
    """time_limit_minutes: after the start, when the run saves and stops to be started again; null
    for none."""

    time_limit_minutes: float | None = None

    def __post_init__(self) -> None:
        limit = self.time_limit_minutes
        if limit is not None and limit <= 0:
            raise InputError(f"health.time_limit_minutes={limit}, expected above 0 or null.")
