"""Config group `health`: detection and handling of faults."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import InputError, one_of


@dataclass
class HealthConfig:
    """Detection and handling of faults during training.

    time_limit_minutes: time after the start at which the run saves and stops, so that a later job
        can continue it; null for no limit.
    spikes: reaction to a spike of the loss or the gradient norm. log records the spike, skip also
        skips its update, and rewind applies the update but rewinds after rewind_after spikes in a
        row. Steps that are not finite are always skipped.
    spike_score: threshold of a spike, in robust standard deviations above the median of the stage's
        last spike_window good steps; 0 for never.
    spike_window: number of good steps from which the median is computed.
    rewind_after: number of bad steps in a row after which the run returns to a checkpoint from
        before them and continues with new data; 0 for never. Spikes that are only logged do not
        count.
    rewinds_at_most: number of rewinds within spike_window steps that are allowed; the next one ends
        the run.
    restarts_at_most: number of restarts from the same checkpoint that are allowed; the next one
        ends the run. 0 for any number.
    step_seconds: time after which a step counts as hung and the run ends; 0 for no watchdog.
    pause_seconds: time after which the work between two steps, or a step that may compile, counts
        as hung.
    straggler_every_steps: interval in steps at which slow ranks are detected; 0 for never.
    straggler_ratio: multiple of the lower median of all ranks' times above which a rank is slow.
    compare_every_steps: interval in steps at which replicas of the weights are compared and their
        fingerprint is written to receipts.jsonl; 0 for no comparisons and no receipts.
    replay_steps: steps to run twice and compare bit by bit, counted from 1.
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
                raise InputError(f"health.{key}={getattr(self, key)}: expected 0 or more.")
        limit = self.time_limit_minutes
        if limit is not None and limit <= 0:
            raise InputError(f"health.time_limit_minutes={limit}: expected more than 0, or null.")
