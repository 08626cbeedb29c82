"""I9: a step never waits for the device; its numbers are read while the next one runs."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.health.bad_steps import BadSteps
from pretrain.hooks import Hook
from pretrain.processes import start
from pretrain.setup import prepare
from pretrain.trainer import Trainer
from tests.runs import settings

WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero")
"""Ops that hand a device's numbers to Python, or whose shapes depend on them."""


class NoReads(TorchDispatchMode):
    """Raises where an op would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func.overloadpacket) in WAITING:
            raise AssertionError(f"{func} waits for the device inside a step")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reads(monkeypatch):
    """A mode for the step; `tolist` and `numpy` read a CPU tensor without any op."""
    mode = NoReads()
    main = threading.current_thread()
    inside: list[bool] = []

    def guard(name):
        read = getattr(torch.Tensor, name)

        def guarded(tensor, *args):
            # The loader's threads read their own numbers on the CPU as they like.
            assert not (inside and threading.current_thread() is main), f"{name} in a step"
            return read(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, guarded)

    guard("tolist")
    guard("numpy")
    step = Trainer.train_step

    def guarded_step(trainer):
        inside.append(True)
        try:
            with mode:
                return step(trainer)
        finally:
            inside.clear()

    monkeypatch.setattr(Trainer, "train_step", guarded_step)
    return guarded_step


class Late(Hook):
    """Which step had been launched when the record of a step came."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen = []

    def on_record(self, record):
        if record["kind"] == "train":
            self.seen.append((record["step"], self.trainer.step))


def run(corpus, tmp_path, **changes):
    config = settings(corpus.folder, tmp_path / "run", stop_after=12, **changes)
    processes = start("cpu")
    try:
        trainer = Trainer(config, processes, prepare(config, processes), BadSteps(config.health, 1))
        late = Late(trainer)
        trainer.hooks = [late]
        trainer.train()
    finally:
        dist.destroy_process_group()
    return late.seen


@pytest.mark.slow
def test_a_step_reads_nothing_and_its_numbers_come_one_step_late(no_reads, corpus, tmp_path):
    seen = run(corpus, tmp_path, precision="bf16")
    # A record comes when the next step is launched, but at a change of stage (after step 10) and
    # at the end all are flushed.
    expected = [(n, n if n in (10, 12) else n + 1) for n in range(1, 13)]
    assert seen == expected


def test_the_guard_notices_a_read(no_reads, corpus, tmp_path, monkeypatch):
    from pretrain import trainer

    def reading(parameters, scale, clip_norm):
        return torch.tensor(float(scale))

    monkeypatch.setattr(trainer, "scale_and_clip", reading)
    with pytest.raises(AssertionError, match="waits for the device"):
        run(corpus, tmp_path)
