"""Runs training on a hollow GPU, and returns what it asked of the GPU.

    def test_something(rehearse):
        run = rehearse(ranks=4, parallel__tp=2, precision="fp8_rowwise")
        assert run.step.collectives["all_reduce"] < 20   # one whole step, the last
        assert run.loop.stalls() == []                   # from the third step on, with all hooks

`rehearse` (a fixture of conftest.py) takes keys of a run with `__` for the dots, like `tests.runs`,
and `ranks`, `steps` and `checkpoints`. Its run has two layers, is 128 wide and trains in bf16 with
attention=varlen for three steps; see `SMALL`. The whole product runs: setup, Trainer.train, hooks.

Several ranks are one process, rank 0: its groups on the GPU are NCCL's, hollow too, and those on
the CPU are torch's `fake` ones. A run of real ranks is `command(..., processes=2)` of conftest.py.
"""

from __future__ import annotations

import gc
import importlib
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pretrain.train
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.config import PretrainConfig
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks import Hook
from pretrain.hooks.checkpoints import Checkpoints
from pretrain.processes import Processes, start
from pretrain.setup import prepare
from pretrain.trainer import Trainer
from tests.hollow import driver, standins  # noqa: F401  puts the stand-ins in place
from tests.hollow.trace import Trace
from tests.runs import records, settings

SMALL = {
    "device": "cuda",
    "precision": "bf16",
    "parallel.attention": "varlen",
    "parallel.compile": "false",
    "model.hidden_size": 128,
    "model.intermediate_size": 256,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.head_dim": 32,
    "model.vocab_size": 272,
    "recipe.global_batch_tokens": 4096,
    "recipe.stages.short.seq_len": 128,
    "recipe.stages.short.tokens": 40960,
    "recipe.stages.long.tokens": 40960,
    "checkpoint.every_steps": 0,
}
"""Ten steps of each stage. Sizes are multiples of 16, which fp8 needs."""
WARM_STEPS = 2
"""Steps at the start that may wait: they compile, fill caches and allocate."""


@dataclass
class Rehearsal:
    """A run on the hollow GPU.

    Attributes:
        config: The config of the run, with every `auto` replaced.
        trainer: The trainer, after its last step.
        whole: All calls of the run, from the setup on.
        step: The calls of the last `Trainer.train_step`.
        loop: The calls of `Trainer.train` from the third step on to the end of the last step, with
            hooks and records; empty for runs of two steps.
        syncs: Stacks of the calls within `loop` that torch says wait for the device
            (`torch.cuda.set_sync_debug_mode`), innermost first.
        peak_bytes: Peak of torch's allocator while training.
    """

    config: PretrainConfig
    trainer: Trainer
    whole: Trace = field(default_factory=lambda: Trace([]))
    step: Trace = field(default_factory=lambda: Trace([]))
    loop: Trace = field(default_factory=lambda: Trace([]))
    syncs: list[str] = field(default_factory=list)
    peak_bytes: int = 0

    def records(self, kind: str = "train") -> list[dict[str, Any]]:
        """Returns the records of a kind in the run's metrics.jsonl."""
        return records(Path(self.config.run_dir), kind)


def small_run(corpus: Path | str, run_dir: Path, **changes: Any) -> PretrainConfig:
    """Returns the config of a small run on the GPU; `changes` as for `tests.runs.settings`."""
    defaults = {key.replace(".", "__"): value for key, value in SMALL.items()}
    if isinstance(changes.get("parallel"), str):  # a choice of the group sets its own keys
        defaults = {k: v for k, v in defaults.items() if not k.startswith("parallel__")}
    return settings(corpus, run_dir, **(defaults | changes))


def rehearse(config: PretrainConfig, ranks: int = 1, checkpoints: bool = False) -> Rehearsal:
    """Trains in this process, as rank 0 of `ranks`, and returns what the GPU was asked for.

    checkpoints: whether the hook that saves them takes part; only with one rank, since the fake
        ranks write nothing.
    """
    with ExitStack() as on_exit:
        processes = on_exit.enter_context(processes_of(ranks))
        writer = WriterProcess()
        on_exit.callback(writer.close)
        recorded = on_exit.enter_context(driver.recording())
        run = prepare(config, processes)
        trainer = Trainer(config, processes, run, BadSteps(config.health, ranks))
        hooks = pretrain.train.make_hooks(trainer, run, [], writer)
        if not checkpoints:
            hooks = [hook for hook in hooks if not isinstance(hook, Checkpoints)]
        for hook in hooks:
            on_exit.callback(hook.on_leave, trainer)
        made = Rehearsal(config, trainer)
        trainer.hooks = hooks
        with watched_steps(made, recorded):
            trainer.train()
        made.peak_bytes = torch.cuda.max_memory_allocated()
    made.whole = recorded.trace
    last = trainer.step - 1
    made.step = made.whole.between(f"step {last}", f"end of step {last}")
    if last >= WARM_STEPS:
        made.loop = made.whole.between(f"loop {WARM_STEPS}", "end of loop")
    return made


@contextmanager
def processes_of(ranks: int) -> Iterator[Processes]:
    """Creates the process group of a run, and cleans up after it."""
    plain = dist.new_group
    try:
        if ranks == 1:
            yield start("cuda")
            return
        importlib.import_module("torch.testing._internal.distributed.fake_pg")
        dist.init_process_group(
            "cpu:fake,cuda:nccl", store=dist.HashStore(), rank=0, world_size=ranks
        )
        # Groups that the project makes on the CPU would wait for the other ranks.
        dist.new_group = lambda *a, **k: plain(*a, **(k | {"backend": "fake"}))
        torch.cuda.set_device(0)
        yield Processes(torch.device("cuda", 0), 0, ranks)
    finally:
        dist.new_group = plain
        if dist.is_initialized():
            dist.destroy_process_group()
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class LoopBorders(Hook):
    """Marks where the loop begins a step, before all other hooks."""

    def __init__(self, watch: Any, recorded: driver.Recording) -> None:
        self.watch, self.recorded = watch, recorded

    def before_step(self, trainer: Any) -> None:
        """Marks the step, and asks torch to report waits once the loop is warm."""
        self.recorded.mark(f"loop {trainer.step}")
        if trainer.step >= WARM_STEPS:
            torch.cuda.set_sync_debug_mode("warn")


class LoopEnd(Hook):
    """Marks the end of each step, after all other hooks; the last mark is the loop's end."""

    def __init__(self, recorded: driver.Recording, end: int) -> None:
        self.recorded, self.end = recorded, end

    def after_step(self, trainer: Any) -> None:
        """Marks the end of the loop before the run's last records are read."""
        if trainer.step == self.end:
            torch.cuda.set_sync_debug_mode("default")
            self.recorded.mark("end of loop")


@contextmanager
def watched_steps(made: Rehearsal, recorded: driver.Recording) -> Iterator[None]:
    """Marks the steps of a trainer, and collects torch's warnings about waits."""
    trainer = made.trainer
    end = min(trainer.config.stop_after or trainer.plan.total_steps, trainer.plan.total_steps)
    trainer.hooks = [
        LoopBorders(made, recorded),
        *trainer.hooks,
        LoopEnd(recorded, end),
    ]
    step = trainer.train_step

    def marked_step() -> Any:
        recorded.mark(f"step {trainer.step}")
        try:
            return step()
        finally:
            recorded.mark(f"end of step {trainer.step}")

    def show(message: Any, *_arguments: Any, **_keywords: Any) -> None:
        if "synchronizing CUDA" in str(message):
            made.syncs.append(_stack())

    trainer.train_step = marked_step  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _stack() -> str:
    frames = reversed(traceback.extract_stack()[:-2])
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    return " < ".join(place for place in places if "/tests/" not in place and "pytest" not in place)
