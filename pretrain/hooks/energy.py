"""Energy of the devices that train, where the machine counts it: NVIDIA's counter of each GPU
(NVML), or those of the processor packages (Linux' powercap). Where one rank has none, the run's
energy is not known, and nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pretrain.distributed import Processes
from pretrain.health.late_gather import LateGather
from pretrain.hooks import Hook

if TYPE_CHECKING:
    from pretrain.trainer import Trainer

EVERY_STEPS = 100
POWERCAP = "HEADWATER_POWERCAP"
"""Folder of the processors' counters; /sys/class/powercap where it is not set."""

Meter = Callable[[], float]
"""Joules since some moment in the past; never falls."""


class Energy(Hook):
    """All ranks. Publishes a line of kind `energy`, with the joules of all ranks since the one
    before, every EVERY_STEPS and at the end."""

    def __init__(self, processes: Processes, meter: Meter | None = None) -> None:
        self.meter = meter or meter_of(processes.device)
        known = torch.tensor(float(self.meter is not None))
        if processes.world_size > 1:
            dist.all_reduce(known, op=dist.ReduceOp.MIN)
        self.on = bool(known)
        if self.on:
            self.gather = LateGather(processes)

    def on_start(self, trainer: Trainer) -> None:
        """From here on it counts."""
        if self.on:
            self.before = self._read()

    def after_step(self, trainer: Trainer) -> None:
        """Hands in what this rank took, and publishes what all took a while ago."""
        if self.on and trainer.step % EVERY_STEPS == 0:
            self._publish(trainer, self.gather.exchange([self._taken()]))

    def on_end(self, trainer: Trainer) -> None:
        """The rest."""
        if self.on:
            self._publish(trainer, self.gather.exchange([self._taken()]))
            self._publish(trainer, self.gather.collect())

    def _read(self) -> float:
        assert self.meter is not None
        return self.meter()

    def _taken(self) -> float:
        before, self.before = self.before, self._read()
        return self.before - before

    def _publish(self, trainer: Trainer, answers: list[list[float]]) -> None:
        if answers:
            trainer.publish({"kind": "energy", "joules": sum(taken for (taken,) in answers)})


def meter_of(device: torch.device) -> Meter | None:
    """That of this rank's GPU; on a CPU the machine's packages for the first rank there, and
    nothing for the others."""
    if device.type == "cuda":
        return gpu_meter(device)
    if int(os.environ.get("LOCAL_RANK", "0")):
        return lambda: 0.0
    return package_meter(Path(os.environ.get(POWERCAP, "/sys/class/powercap")))


def gpu_meter(device: torch.device) -> Meter | None:
    """Of one GPU, by its UUID: CUDA_VISIBLE_DEVICES numbers them anew. None without NVML, or where
    it does not count (a part of a GPU, or one from before Volta)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no library, no right, no such counter: each in its own way
        return None
    counter: Any = pynvml.nvmlDeviceGetTotalEnergyConsumption
    return lambda: counter(handle) / 1e3


def package_meter(root: Path) -> Meter | None:
    """Of the packages under `root` (`intel-rapl:0` and so on, AMD's too); their counters, in
    microjoules, begin anew at `max_energy_range_uj`. None where there are none to be read."""
    packages = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
    try:
        ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        last = [int((path / "energy_uj").read_text()) for path in packages]
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    total = 0

    def meter() -> float:
        nonlocal total
        for number, path in enumerate(packages):
            now = int((path / "energy_uj").read_text())
            total += (now - last[number]) % ranges[number]
            last[number] = now
        return total / 1e6

    return meter
