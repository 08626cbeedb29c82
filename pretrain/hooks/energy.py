"""Energy that the run took, where the machine counts it; all ranks.

A GPU is asked through NVML (`nvidia-ml-py`), a machine's CPU packages through RAPL, which Linux
shows to root under /sys/class/powercap. Both count up by themselves: nothing is polled between two
readings. What cannot be read is left out of the records.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pretrain.health.late_gather import LateGather
from pretrain.hooks import Hook, TrainerView
from pretrain.processes import Processes

EVERY_STEPS = 100
POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float]
"""Joules since the last call; the first one since it was made."""


class Energy(Hook):
    """Publishes an event every `EVERY_STEPS` and at the end: `seconds`, and `gpu_joules` of all
    processes' GPUs and `cpu_joules` of all machines, each where all of them can be read."""

    def __init__(self, processes: Processes) -> None:
        on_gpu = processes.device.type == "cuda"
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        self.gpu = nvml(processes.device) if on_gpu else None
        # One process reads what all of a machine share.
        self.cpu = rapl() if first_here else lambda: 0.0
        self.gather = LateGather(processes, 3)

    def on_start(self, trainer: TrainerView) -> None:
        """Starts to count."""
        self.began = time.perf_counter()
        self._read()

    def after_step(self, trainer: TrainerView) -> None:
        """Hands in what this process read, and publishes what all read the time before."""
        if trainer.step % EVERY_STEPS == 0:
            self._publish(trainer, self.gather.exchange(self._read()))

    def on_end(self, trainer: TrainerView) -> None:
        """Publishes the rest."""
        self._publish(trainer, self.gather.exchange(self._read()))
        self._publish(trainer, self.gather.collect())

    def _read(self) -> list[float]:
        """Joules of GPU and CPU, and seconds, since the last time; nan is not known."""
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        return [*(meter() if meter else math.nan for meter in (self.gpu, self.cpu)), seconds]

    def _publish(self, trainer: TrainerView, answers: list[list[float]]) -> None:
        if not answers:
            return
        sums = {
            name: sum(answer[column] for answer in answers)
            for column, name in enumerate(("gpu_joules", "cpu_joules"))
        }
        known = {name: total for name, total in sums.items() if not math.isnan(total)}
        if known:
            seconds = max(answer[2] for answer in answers)
            record = {"kind": "event", "event": "energy", "seconds": seconds}
            trainer.publish(record | known)


def nvml(device: torch.device) -> Meter | None:
    """Of one GPU; None where NVML or its counter (Volta and later) is not there."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return difference(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    except Exception:  # no package, no driver, no such counter: each in a way of its own
        return None


def rapl() -> Meter | None:
    """Of the CPU packages of this machine, memory not counted; None where they cannot be read."""
    meters = []
    for package in sorted(POWERCAP.glob("intel-rapl:*")):  # AMD's too; parts have a second colon
        if package.name.count(":") > 1 or not (package / "energy_uj").is_file():
            continue
        try:
            span = joules(package / "max_energy_range_uj")
            meters.append(difference(partial(joules, package / "energy_uj"), span))
        except (OSError, ValueError):  # only root may read it
            return None
    return (lambda: sum(meter() for meter in meters)) if meters else None


def joules(file: Path) -> float:
    """Of a file that holds microjoules."""
    return int(file.read_text()) / 1e6


def difference(counter: Callable[[], float], span: float = math.inf) -> Meter:
    """A meter of a counter in joules that begins anew at `span`; nan from where it fails."""
    last = counter()

    def meter() -> float:
        nonlocal last
        try:
            now = counter()
        except Exception:  # a driver that went away must not end the run
            return math.nan
        used, last = now - last, now
        return used if used >= 0 else used + span

    return meter
