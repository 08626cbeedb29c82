"""Measures the energy that a run uses, on all ranks, if the hardware counts it.

GPUs are read through NVML (`nvidia-ml-py`), and CPU packages through RAPL, which Linux exposes to
root in /sys/class/powercap. Both are hardware counters, so nothing is polled between two readings.
Values that cannot be read are not recorded.
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
"""Function that returns the joules since its last call, or since it was created."""


class Energy(Hook):
    """Publishes an event with the energy used, every `EVERY_STEPS` steps and at the end.

    The event contains `seconds`, `gpu_joules` of all processes and `cpu_joules` of all machines.
    Either sum is left out if a process or machine cannot read its counter.
    """

    def __init__(self, processes: Processes) -> None:
        on_gpu = processes.device.type == "cuda"
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        self.gpu = nvml(processes.device) if on_gpu else None
        # The processes of a machine share the CPU counters, so only one of them reads these.
        self.cpu = rapl() if first_here else lambda: 0.0
        self.gather = LateGather(processes, 3)

    def on_start(self, trainer: TrainerView) -> None:
        """Starts counting energy and time."""
        self.began = time.perf_counter()
        self._read()

    def after_step(self, trainer: TrainerView) -> None:
        """Submits this process's reading, and publishes the previous readings of all processes."""
        if trainer.step % EVERY_STEPS == 0:
            self._publish(trainer, self.gather.exchange(self._read()))

    def on_end(self, trainer: TrainerView) -> None:
        """Publishes the remaining readings."""
        self._publish(trainer, self.gather.exchange(self._read()))
        self._publish(trainer, self.gather.collect())

    def _read(self) -> list[float]:
        """Returns GPU joules, CPU joules (nan if unknown) and seconds since the last reading."""
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
    """Returns the meter of a GPU, or None if NVML is missing or the GPU is older than Volta."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return difference(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    except Exception:  # no package, driver or counter; each raises its own error
        return None


def rapl() -> Meter | None:
    """Returns the meter of this machine's CPU packages, or None if it cannot be read.

    The energy of DRAM is not included.
    """
    meters = []
    for package in sorted(
        POWERCAP.glob("intel-rapl:*")
    ):  # also AMD's; subdomains have a second colon
        if package.name.count(":") > 1 or not (package / "energy_uj").is_file():
            continue
        try:
            span = joules(package / "max_energy_range_uj")
            meters.append(difference(partial(joules, package / "energy_uj"), span))
        except (OSError, ValueError):  # readable by root only
            return None
    return (lambda: sum(meter() for meter in meters)) if meters else None


def joules(file: Path) -> float:
    """Returns the value in a counter file, converted from microjoules to joules."""
    return int(file.read_text()) / 1e6


def difference(counter: Callable[[], float], span: float = math.inf) -> Meter:
    """Returns a meter for a counter in joules that wraps around at `span`.

    The meter returns nan if the counter fails.
    """
    last = counter()

    def meter() -> float:
        nonlocal last
        try:
            now = counter()
        except Exception:  # a lost driver must not end the run
            return math.nan
        used, last = now - last, now
        return used if used >= 0 else used + span

    return meter
