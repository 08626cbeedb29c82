"""Energy from the machine's counters, in the metrics and on the report."""

import json
from typing import Any

import pytest
import torch

from eval.page_run import energy
from eval.run_folder import RunFolder
from pretrain.distributed import Processes
from pretrain.hooks.energy import EVERY_STEPS, Energy, gpu_meter, package_meter
from tests.runs import arguments, records

CPU = Processes(torch.device("cpu"), 0, 1)


def package(root, name, energy, limit=1_000_000_000):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_are_added_up_over_their_wrap_and_their_parts_are_not(tmp_path):
    package(tmp_path, "intel-rapl:0", 999_000_000)
    package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 77)
    meter: Any = package_meter(tmp_path)
    assert meter() == 0
    package(tmp_path, "intel-rapl:0", 2_000_000)
    package(tmp_path, "intel-rapl:1", 11_000_000)
    package(tmp_path, "intel-rapl:0:0", 7_000_000)
    assert meter() == pytest.approx(3 + 6)


def test_without_counters_nothing_is_known(tmp_path):
    assert package_meter(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert package_meter(tmp_path) is None
    assert gpu_meter(torch.device("cuda", 99)) is None


class Trainer:
    """What the hook sees of one."""

    def __init__(self):
        self.step, self.published = 0, []

    def publish(self, record):
        self.published.append((self.step, record["joules"]))


def test_what_is_taken_between_lines_is_published_once():
    trainer: Any = Trainer()
    joules = [100.0]
    hook = Energy(CPU, lambda: joules[0])
    hook.on_start(trainer)
    for step in range(1, 2 * EVERY_STEPS + 31):
        joules[0] += 2.0
        trainer.step = step
        hook.after_step(trainer)
    hook.on_end(trainer)
    steps = [EVERY_STEPS, 2 * EVERY_STEPS, 2 * EVERY_STEPS + 30]
    assert trainer.published == [
        (step, 2.0 * (step - before)) for before, step in zip([0, *steps], steps, strict=False)
    ]


def test_ranks_are_added_up_and_a_resumed_run_goes_on(command, corpus, tmp_path):
    """The counters do not move here: what matters is that all ranks hand in and a line comes."""
    root = tmp_path / "powercap"
    root.mkdir()
    package(root, "intel-rapl:0", 1_000_000)
    run_dir = tmp_path / "run"
    for stop in (5, None):
        arguments_ = arguments(corpus.folder, run_dir, stop_after=stop)
        done = command(*arguments_, processes=2, HEADWATER_POWERCAP=str(root))
        assert done.returncode == 0, done.stderr
    assert [line["step"] for line in records(run_dir, "energy")] == [5, 20]


def test_the_report_adds_up_the_lines(tmp_path):
    lines = [{"kind": "energy", "joules": 1.8e6, "step": step} for step in (100, 200)]
    run = RunFolder(tmp_path, {}, {}, json.loads(json.dumps(lines)))
    assert energy(run, "GPU") == "1 kWh of the GPUs, to step 200"
    assert "not known" in energy(RunFolder(tmp_path, {}, {}, []), "GPU")
