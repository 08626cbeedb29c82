"""Settings of `health`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import InputError, one_of


@dataclass
class HealthConfig:
    """time_limit_minutes: after the start, when the run saves and stops to be started again; null
        for none.
    spikes: of loss or gradient norm: log, skip their update, or rewind (updates them, but goes back
        after rewind_after in a row). What is not finite is always skipped.
    spike_score: a spike is that many robust standard deviations above the median of the last
        spike_window good steps of the stage; 0 for never.
    rewind_after: bad steps in a row before the run goes back to a checkpoint from before them and
        goes on with new data; 0 for never. Logged spikes do not count.
    rewinds_at_most: within spike_window steps, before the run gives up.
    step_seconds, pause_seconds: that a step, and the work between two steps or a step that may
        compile, can take before the run is ended as hung; step_seconds=0 for no watchdog.
    straggler_every_steps: slow ranks are looked for; 0 for never. straggler_ratio: to the lower
        median of the ranks, from which one is slow.
    compare_every_steps: copies of the weights are compared, and their fingerprint goes into
        receipts.jsonl; 0 for never and no receipts.
    replay_steps: to do twice and compare to the bit, counted from 1.
    restarts_at_most: starts of a run, after the first, from the same checkpoint; 0 for any number.
    """

    time_limit_minutes: float | None = None
    spikes: str = "log"
    spike_score: float = 10.0
    spike_window: int = 128
    rewind_after: int = 10
    rewinds_at_most: int = 3
    restarts_at_most: int = 5
    step_seconds: float = 600.0
    pause_seconds: float = 3600.0
    straggler_every_steps: int = 50
    straggler_ratio: float = 2.0
    compare_every_steps: int = 100
    replay_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("health.spikes", self.spikes, ("log", "skip", "rewind"))
        for key in (
            "spike_score",
            "spike_window",
            "rewind_after",
            "rewinds_at_most",
            "restarts_at_most",
            "step_seconds",
            "straggler_every_steps",
            "compare_every_steps",
        ):
            if getattr(self, key) < 0:
                raise InputError(f"health.{key}={getattr(self, key)}, expected 0 or more.")
        limit = self.time_limit_minutes
        if limit is not None and limit <= 0:
            raise InputError(f"health.time_limit_minutes={limit}, expected above 0 or null.")
