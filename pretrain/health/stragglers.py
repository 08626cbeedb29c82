"""Detects ranks that are slower than the others.

Collectives make all ranks equally slow, so only the work that a rank does alone is compared:
waiting for its data, and the optimizer's update of its shard (with AdamW; Muon's update contains
collectives). A rank is reported if its mean time is well above the ranks' lower median in two
intervals in a row.
"""

from __future__ import annotations

import time
from statistics import median_low

from pretrain.health.config import HealthConfig
from pretrain.health.late_gather import LateGather
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.processes import Processes
from pretrain.step_numbers import Lap, LapClock

LEAST_SHARE = 0.05
"""Smallest difference that counts as slow, as a fraction of a step's time."""


class Stragglers(Hook):
    """Publishes an event and prints a line for each slow rank. The hook runs on all ranks."""

    order = Order.VERIFY

    def __init__(self, config: HealthConfig, processes: Processes) -> None:
        self.every, self.ratio = config.straggler_every_steps, config.straggler_ratio
        self.on = self.every > 0 and processes.world_size > 1
        self.is_main = processes.is_main
        if self.on:
            self.gather = LateGather(processes, 3)
            self.clock = LapClock(processes.device)
        self.seconds = [0.0, 0.0]
        self.suspects: set[tuple[int, str]] = set()
        self.updates: list[Lap] = []

    def on_start(self, trainer: TrainerView) -> None:
        """Registers a callback that notes when each optimizer update ends."""
        if self.on:
            self.began = time.perf_counter()
            trainer.optimizer.register_step_post_hook(
                lambda *_: self.updates.append(self.clock.lap())
            )

    def before_optimizer_step(self, trainer: TrainerView) -> None:
        """Notes when the update begins."""
        if self.on:
            self.clock.restart()

    def after_step(self, trainer: TrainerView) -> None:
        """Adds up this rank's times, and compares the ranks when due."""
        if not self.on:
            return
        self.seconds[0] += trainer.data_wait_seconds
        while len(self.updates) > 1:  # the newest may still be running on the device
            self.seconds[1] += self.updates.pop(0).seconds()
        if trainer.step % self.every == 0:
            now = time.perf_counter()
            answers = self.gather.exchange([*self.seconds, now - self.began])
            self.seconds, self.began = [0.0, 0.0], now
            self._compare(trainer, answers)

    def on_end(self, trainer: TrainerView) -> None:
        """Completes the pending gather."""
        if self.on:
            self.gather.collect()

    def _compare(self, trainer: TrainerView, answers: list[list[float]]) -> None:
        found = set(slow(answers, self.ratio))
        for rank, what in sorted(found & self.suspects):
            column = ("data", "optimizer").index(what)
            ms = 1e3 / self.every
            mine, usual = answers[rank][column] * ms, median_low(a[column] for a in answers) * ms
            trainer.publish(
                {"kind": "event", "event": "straggler", "rank": rank, "at": what}
                | {"milliseconds": mine, "median_milliseconds": usual}
            )
            if self.is_main:
                print(
                    f"warning: rank {rank} is slow at {what}: {mine:.1f} ms, median of all ranks "
                    f"{usual:.1f} ms."
                )
        self.suspects = found


def slow(answers: list[list[float]], ratio: float) -> list[tuple[int, str]]:
    """Returns (rank, what it is slow at) for each slow rank.

    answers: per rank, the seconds spent on data, on the optimizer, and on whole steps.
    """
    found = []
    for column, what in enumerate(("data", "optimizer")):
        usual = median_low(answer[column] for answer in answers) if answers else 0.0
        for rank, answer in enumerate(answers):
            matters = answer[column] - usual > LEAST_SHARE * answer[2]
            if matters and answer[column] > ratio * usual:
                found.append((rank, what))
    return found
