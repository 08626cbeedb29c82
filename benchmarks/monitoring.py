"""Measures the cost per step of metrics, ledger, receipts, health checks and wandb on a CPU.

One run of the real trainer (the 19M-parameter model, batches of 8 x 512) takes turns of a few steps
with all hooks and with only those that training needs, A B A B. Reported are the median seconds per
step, the median ratio of neighbouring turns, and the seconds spent inside the hooks, which do not
depend on the noise of the machine.

    python benchmarks/monitoring.py [--turns 30] [--steps 3]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cpu_training import BATCH, SEQ, small_model
from benchmarks.figures import write_results
from benchmarks.machine import machine
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.config import DataConfig, OptimConfig, ParallelConfig, PretrainConfig
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks import Hook, TrainerView
from pretrain.hooks.attention import AttentionByStage
from pretrain.hooks.precision import PrecisionByStage
from pretrain.processes import start
from pretrain.setup import prepare
from pretrain.train import make_hooks
from pretrain.trainer import Trainer
from tests.corpora import make_corpus

METHODS = ("before_step", "before_optimizer_step", "after_step", "on_record")


class Turns(Hook):
    """The last hook: switches between all hooks and the needed ones, and times the steps."""

    def __init__(self, hooks: list[Hook], steps: int) -> None:
        self.everything: list[Hook] = [*hooks, self]
        needed = (AttentionByStage, PrecisionByStage)
        self.needed: list[Hook] = [*(h for h in hooks if isinstance(h, needed)), self]
        self.steps = steps
        self.seconds: dict[bool, list[list[float]]] = {True: [], False: []}
        self.done, self.full, self.last = 0, True, time.perf_counter()

    def after_step(self, trainer: TrainerView) -> None:
        """Records the time of the step, except for the first of each turn."""
        now = time.perf_counter()
        if self.done % self.steps == 0:
            self.seconds[self.full].append([])
        else:
            self.seconds[self.full][-1].append(now - self.last)
        self.done += 1
        if self.done % self.steps == 0:
            self.full = not self.full
            assert isinstance(trainer, Trainer)
            trainer.hooks = self.everything if self.full else self.needed
        self.last = time.perf_counter()


def timed(hook: Hook, spent: list[float]) -> Hook:
    """Returns the hook with methods that add their seconds to `spent`."""
    for name in METHODS:
        method = getattr(hook, name)

        def call(*arguments: Any, method: Any = method) -> None:
            started = time.perf_counter()
            method(*arguments)
            spent[0] += time.perf_counter() - started

        setattr(hook, name, call)
    return hook


def main() -> None:
    """Trains and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30, help="pairs of turns")
    parser.add_argument("--steps", type=int, default=3, help="of a turn, the first left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/monitoring.json"))
    options = parser.parse_args()
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    writer = WriterProcess()
    processes = start("cpu")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WANDB_DIR"] = folder
        config = settings(Path(folder), 2 * options.turns * options.steps)
        run = prepare(config, processes)
        trainer = Trainer(config, processes, run, BadSteps(config.health, 1))
        spent = [0.0]
        hooks = make_hooks(trainer, run, [], writer)
        hooks = [hook for hook in hooks if type(hook).__name__ not in ("Validation", "Checkpoints")]
        turns = Turns([timed(hook, spent) for hook in hooks], options.steps)
        trainer.hooks = turns.everything
        trainer.train()
    writer.close()
    full, bare = turns.seconds[True], turns.seconds[False]
    pairs = list(zip(map(median, full), map(median, bare), strict=True))[1:]
    step = median(seconds for turn in full for seconds in turn)
    inside = spent[0] / (options.turns * options.steps)
    figures = {
        "machine": machine(),
        "hooks": [type(hook).__name__ for hook in hooks],
        "step_seconds": step,
        "step_seconds_without": median(seconds for turn in bare for seconds in turn),
        "median_ratio_of_pairs": median(with_all / without for with_all, without in pairs),
        "pairs": len(pairs),
        "seconds_inside_hooks": inside,
        "share_inside_hooks": inside / step,
    }
    write_results(options.out, figures)


def settings(folder: Path, steps: int) -> PretrainConfig:
    """Returns the config of the 19M-parameter model on text, with all checks at their defaults."""
    from conf.wandb_run import LoggerConfig
    from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig

    make_corpus(folder / "data")
    stage = TrainingStageConfig(SEQ, BATCH * SEQ * steps, {"code": 0.5, "prose": 0.5})
    return PretrainConfig(
        name="monitoring",
        run_dir=str(folder / "run"),
        device="cpu",
        data=DataConfig(folder=str(folder / "data"), max_epochs=1000),
        model=small_model(),
        recipe=TrainingRecipeConfig("monitoring", BATCH * SEQ, {"all": stage}),
        optim=OptimConfig(learning_rate=1e-3, warmup_tokens=BATCH * SEQ),
        parallel=ParallelConfig(micro_batch_tokens=BATCH * SEQ),
        logger=LoggerConfig(wandb="offline"),
    )


if __name__ == "__main__":
    main()
