"""I9 on a CUDA device: the loop waits for no step that it has just queued, hooks included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.fp8_checks import FP8_CAPABILITY
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks import Hook, TrainerView
from pretrain.processes import start
from pretrain.setup import prepare
from pretrain.train import make_hooks
from pretrain.trainer import Trainer
from tests.runs import records, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
WARM_STEPS = 2
"""Steps that may wait, because they compile, tune and allocate."""
STEPS = 9
LONG_CYCLES = 400_000_000
"""Cycles of a GPU's clock that take longer than the host needs for a step: 0.2 s at 2 GHz."""


class NoWaits(Hook):
    """Lets torch raise an error where the host waits for a stream, from the third step on."""

    def before_step(self, trainer: TrainerView) -> None:
        if trainer.step == WARM_STEPS:
            torch.cuda.set_sync_debug_mode("error")

    def on_record(self, record: Mapping[str, Any]) -> None:
        if record.get("event") in ("stop", "finish"):
            torch.cuda.set_sync_debug_mode("default")


class LongSteps(Hook):
    """Makes each step long on the device, and notes which one is done when a record comes."""

    def __init__(self) -> None:
        self.ends: list[torch.cuda.Event] = []
        self.done: list[tuple[int, bool, bool]] = []

    def before_optimizer_step(self, trainer: TrainerView) -> None:
        torch.cuda._sleep(LONG_CYCLES)
        self.ends.append(torch.cuda.Event())
        self.ends[-1].record()

    def on_record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "train":
            last, step = len(self.ends), record["step"]
            self.done.append((step, self.ends[step - 1].query(), self.ends[last - 1].query()))


@contextmanager
def training(corpus, run_dir: Path, extra: list[Hook], **changes) -> Iterator[Trainer]:
    """A trainer with all hooks of a run, and `extra` before them."""
    config = settings(corpus.folder, run_dir, device="cuda", stop_after=STEPS, **changes)
    with ExitStack() as on_exit:
        writer = WriterProcess()
        on_exit.callback(writer.close)
        processes = start("cuda")
        on_exit.callback(torch._dynamo.reset)
        on_exit.callback(dist.destroy_process_group)
        on_exit.callback(torch.cuda.set_sync_debug_mode, "default")
        run = prepare(config, processes)
        trainer = Trainer(config, processes, run, BadSteps(config.health, 1))
        trainer.hooks = [*extra, *make_hooks(trainer, run, [], writer)]
        for hook in trainer.hooks:
            on_exit.callback(hook.on_leave, trainer)
        yield trainer


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [
        ("bf16", "false"),
        ("bf16", "true"),
        pytest.param(
            *("fp8", "true"),
            marks=pytest.mark.skipif(
                torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY,
                reason="this GPU does not multiply fp8",
            ),
        ),
    ],
)
def test_the_loop_does_not_wait_for_the_device(precision, compiled, corpus, tmp_path):
    """With the comparison of replicas in some of the steps."""
    changes = {
        "precision": precision,
        "parallel__compile": compiled,
        "checkpoint__every_steps": 0,
        "health__compare_every_steps": 3,
    }
    with training(corpus, tmp_path / "run", [NoWaits()], **changes) as trainer:
        trainer.train()
    assert len(records(tmp_path / "run")) == STEPS


def test_a_record_comes_while_the_next_step_runs(corpus, tmp_path):
    changes = {"precision": "bf16", "parallel__compile": "false", "checkpoint__every_steps": 4}
    steps = LongSteps()
    with training(corpus, tmp_path / "run", [steps], **changes) as trainer:
        trainer.train()
    flushed = (4, 8, STEPS)  # a checkpoint needs the record of its step
    assert [(step, own) for step, own, _ in steps.done] == [(n, True) for n in range(1, STEPS + 1)]
    assert [step for step, _, newest in steps.done if newest] == list(flushed)


def test_times_of_steps_are_those_of_the_device(corpus, tmp_path):
    """Each step contains its pause on the device, also next to checkpoints and other events."""
    changes = {"precision": "bf16", "parallel__compile": "false", "checkpoint__every_steps": 3}
    with training(corpus, tmp_path / "run", [LongSteps()], **changes) as trainer:
        trainer.train()
    found = records(tmp_path / "run")
    seconds = [record["step_seconds"] for record in found]
    assert min(seconds[WARM_STEPS:]) > 0.8 * sorted(seconds)[STEPS // 2]
    assert max(record["mfu"] for record in found) < 1
