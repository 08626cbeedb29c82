"""Joules from counters that the machine keeps."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain.hooks import energy
from pretrain.hooks.energy import EVERY_STEPS, Energy, nvml, rapl
from pretrain.processes import Processes
from pretrain.train import train
from tests.runs import records, settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Two packages and a part of the first; returns a function that sets their counters."""

    def count(**joules: float) -> None:
        for name, value in joules.items():
            folder = tmp_path / name.replace("package", "intel-rapl:").replace("_", ":")
            folder.mkdir(exist_ok=True)
            (folder / "energy_uj").write_text(f"{round(value * 1e6)}\n")
            (folder / "max_energy_range_uj").write_text("1000000000\n")

    count(package0=100, package0_0=50, package1=990)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return count


def test_cpu_packages(powercap):
    """Parts of a package are in it already; a counter restarts at its range of 1000 J."""
    meter = rapl()
    assert meter is not None
    powercap(package0=107, package0_0=57, package1=5)
    assert meter() == pytest.approx(7 + 15)
    assert meter() == 0
    powercap(package1=5.5)
    assert meter() == pytest.approx(0.5)


def test_a_counter_that_may_not_be_read(powercap, monkeypatch):
    def refuse(path: Path) -> str:
        raise PermissionError(path)

    meter = rapl()
    assert meter is not None
    monkeypatch.setattr(Path, "read_text", refuse)
    assert rapl() is None
    assert math.isnan(meter())


@pytest.fixture
def driver(monkeypatch):
    """NVML of one GPU, whose counter is in millijoules."""
    module: Any = ModuleType("pynvml")
    module.counter = 5_000
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = {"GPU-12-34": "handle"}.__getitem__
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: {"handle": module.counter}[handle]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return module


def test_gpu(driver, monkeypatch):
    meter = nvml(GPU)
    assert meter is not None
    driver.counter = 12_500
    assert meter() == pytest.approx(7.5)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml(GPU) is None  # the package is not installed


def publish(hook: Energy, steps: int) -> list[dict]:
    """Publishes the records of a run of so many steps."""
    found: list[dict] = []
    trainer: Any = SimpleNamespace(step=0, publish=found.append)
    hook.on_start(trainer)
    for step in range(1, steps + 1):
        trainer.step = step
        hook.after_step(trainer)
    hook.on_end(trainer)
    return found


def test_events(powercap, driver):
    found = publish(Energy(Processes(GPU, 0, 1)), EVERY_STEPS)
    assert [event["event"] for event in found] == ["energy"] * 2
    assert [set(event) & {"gpu_joules", "cpu_joules"} for event in found] == [
        {"gpu_joules", "cpu_joules"}
    ] * 2
    assert all(event["seconds"] >= 0 for event in found)


def test_no_counter_no_event(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert publish(Energy(Processes(CPU, 0, 1)), 2 * EVERY_STEPS) == []


def joules_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    hook = Energy(Processes(CPU, rank, 2))
    hook.gpu = lambda: 10.0 + rank
    hook.cpu = (lambda: 3.0) if rank == 0 else None  # its counter may not be read
    torch.save(publish(hook, 2 * EVERY_STEPS), folder / str(rank))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path):
    """Energy that only some processes can read is unknown."""
    mp.spawn(joules_of_two, (tmp_path,), nprocs=2)
    for rank in range(2):
        events = torch.load(tmp_path / str(rank))
        assert [event["gpu_joules"] for event in events] == [21.0] * 3
        assert not any("cpu_joules" in event for event in events)


def train_beside(rank: int, folder: Path, corpus: Path, run_dir: Path) -> None:
    energy.POWERCAP = folder
    train(settings(corpus, run_dir, stop_after=2))


@pytest.mark.slow
def test_a_run_counts(corpus, tmp_path, powercap):
    """The trainer has the hook."""
    run_dir = tmp_path / "run"
    mp.spawn(train_beside, (energy.POWERCAP, corpus.folder, run_dir))
    (event,) = [r for r in records(run_dir, "event") if r["event"] == "energy"]
    assert event["cpu_joules"] == 0
    assert event["step"] == 2
