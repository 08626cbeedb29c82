"""Trains a small model with the trainer itself, and compares it with a curve made on the CPU.

The runs are those of `tests/runs.py`: two stages of ten steps, a validation and checkpoints. Each
run stops after half of its steps and resumes. In a step that is not among the first of its stage,
anything that waits for the device is an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.worker import Recorder

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from pretrain.trainer import Trainer

STEPS = 20
CURVE = "curve.json"
CORPUS = "corpus"
LIMITS = {"fp32": 1e-3, "bf16": 0.02, "fp8": 0.03}
"""Largest relative difference of a step's loss from the curve, by precision."""
WARM_STEPS = 2
"""Steps of each stage, and of each start, that may wait: they compile and tune."""
RUNS = (
    ("eager, bf16", {"precision": "bf16", "parallel__compile": "false"}),
    ("compiled, bf16", {"precision": "bf16", "parallel__compile": "true"}),
    ("compiled, fp8", {"precision": "fp8", "parallel__compile": "true"}),
)
CPU_RUNS = (*RUNS[:2], ("eager, fp8", {"precision": "fp8", "parallel__compile": "false"}))
"""Runs that test the session: the CPU's emulation of fp8 takes minutes to compile."""
MEMORY_SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "num_kv_heads": 4,
    "max_seq_len": 1024,
    "sliding_window": None,
}
MEMORY_LIMIT = 0.1
"""Largest relative difference of the measured peak from the planned one."""


def training(recorder: Recorder) -> None:
    """Trains eager, compiled and in fp8, each against the curve."""
    context: Context = recorder.context
    on_gpu = context.device.type == "cuda"
    for title, changes in RUNS if on_gpu else CPU_RUNS:
        recorder.measure(title, train_against_curve, title, changes, context, needs=10)
    if on_gpu:
        recorder.measure("loop without waits", loop_without_waits, context, needs=5)


def train_against_curve(title: str, changes: dict[str, Any], context: Context) -> dict[str, Any]:
    """Returns the largest difference from the curve, and the waits outside of steps."""
    expected = json.loads((context.kit / CURVE).read_text())
    run_dir = context.scratch / "".join(c if c.isalnum() else "_" for c in title)
    shutil.rmtree(run_dir, ignore_errors=True)
    for stop_after in (STEPS // 2, None):
        config = small_run(context, run_dir, stop_after=stop_after, **changes)
        with guarded_steps(context):
            train(config, context)
        context.clean_up()
    losses, validation = curve_of(run_dir)
    differences = [
        abs(found - wanted) / wanted
        for found, wanted in zip(losses, expected["losses"], strict=True)
    ]
    last = abs(validation - expected["validation"]) / expected["validation"]
    largest = max([*differences, last], key=lambda value: (value != value, value))
    events = [record["event"] for record in records(run_dir, "event")]
    return {
        "ok": largest <= LIMITS[changes["precision"]] and "resume" in events,
        "largest_difference": largest,
        "last_loss": losses[-1],
        "last_loss_on_cpu": expected["losses"][-1],
        "resumed": "resume" in events,
        "recompiles": events.count("recompile"),
    }


def loop_without_waits(context: Context) -> dict[str, Any]:
    """Trains with all hooks; from the third step on, a wait anywhere in the loop is an error."""
    from tests.gpu import test_loop

    run_dir = context.scratch / "loop"
    shutil.rmtree(run_dir, ignore_errors=True)
    corpus = SimpleNamespace(folder=context.kit / CORPUS)
    changes = {"precision": "bf16", "checkpoint__every_steps": 0, "health__compare_every_steps": 3}
    with test_loop.training(corpus, run_dir, [test_loop.NoWaits()], **changes) as trainer:
        trainer.train()
    steps = len(records(run_dir, "train"))
    return {"ok": steps == test_loop.STEPS}


def small_run(context: Context, run_dir: Path, **changes: Any) -> PretrainConfig:
    """Returns the config of a small run on the corpus of the kit."""
    from tests.runs import settings

    device = {"device": context.device.type, "logger__progress": "false"}
    return settings(context.kit / CORPUS, run_dir, **(device | changes))


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of a kind in a run's metrics."""
    from tests.runs import records as read

    return read(run_dir, kind)


def curve_of(run_dir: Path) -> tuple[list[float], float]:
    """Returns the loss of each step, and the last validation loss."""
    losses = {record["step"]: record["loss"] for record in records(run_dir, "train")}
    return [losses[step] for step in sorted(losses)], records(run_dir, "validation")[-1]["loss"]


def train(config: PretrainConfig, context: Context) -> None:
    """Runs the training process of `python -m pretrain` in this process."""
    from pretrain.processes import start
    from pretrain.train import run_training

    with ExitStack() as on_exit:
        run_training(config, start(config.device), context.writer, on_exit)


@contextmanager
def guarded_steps(context: Context) -> Iterator[None]:
    """Makes waiting for the device an error in all steps but the first ones of each stage."""
    import torch

    from pretrain.trainer import Trainer

    if context.device.type != "cuda":
        yield
        return
    plain = Trainer.train_step
    first: dict[int, int] = {}

    def guarded(trainer: Trainer) -> Any:
        stage = trainer.plan.at(trainer.step)
        began = first.setdefault(stage.index, trainer.step)
        is_warm = trainer.step >= began + WARM_STEPS
        torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
        try:
            return plain(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    Trainer.train_step = guarded  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Trainer.train_step = plain  # type: ignore[method-assign]


def memory(recorder: Recorder) -> None:
    """Compares the planned with the measured peak, in each checkpointing mode.

    torch.compile needs less than planned, and a CPU's resident set is more than its tensors, so
    only eager runs on a GPU, at full size, are judged.
    """
    from pretrain.parallel.activation_checkpointing import MODES

    context: Context = recorder.context
    for compiled in (False, True) if context.device.type == "cuda" else (False,):
        for mode in MODES:
            title = f"{mode}, {'compiled' if compiled else 'eager'}"
            recorder.measure(title, peak_against_plan, title, mode, compiled, context, needs=5)


def peak_against_plan(title: str, mode: str, compiled: bool, context: Context) -> dict[str, Any]:
    """Returns the planned and the measured peak of a run of two steps."""
    from pretrain.planning.layouts import Machine, fit, requirements_of
    from pretrain.planning.memory import Sizes

    tokens, seq_len = (1024, 128) if context.tiny else (16384, 1024)
    shape = MEMORY_SHAPE | ({"num_layers": 2, "hidden_size": 96} if context.tiny else {})
    run_dir = context.scratch / "".join(c if c.isalnum() else "_" for c in f"memory_{title}")
    shutil.rmtree(run_dir, ignore_errors=True)
    changes = {f"model__{key}": value for key, value in shape.items()} | {
        "precision": "bf16",
        "recipe__stages__short__seq_len": seq_len,
        "recipe__stages__long__seq_len": seq_len,
        "recipe__global_batch_tokens": 2 * tokens,
        "recipe__stages__short__tokens": 4 * tokens,
        "recipe__stages__long__tokens": 2 * tokens,
        "parallel__micro_batch_tokens": tokens,
        "parallel__activation_checkpointing": mode,
        "parallel__compile": str(compiled).lower(),
        "validation__every_steps": 0,
        "validation__tokens": 2 * seq_len,
        "checkpoint__every_steps": 0,
        "stop_after": 2,
    }
    config = small_run(context, run_dir, **changes)
    train(config, context)
    measured = records(run_dir, "train")[-1]["memory_peak_bytes"]
    requirements = requirements_of(config, None, (seq_len,))
    everything = Machine(1, 1, 1 << 50, context.device.type)
    planned = fit(requirements, Sizes(), everything).memory
    found = memory_figures(planned, measured, mode, compiled)
    is_judged = not compiled and context.device.type == "cuda" and not context.tiny
    return ({"ok": abs(found["ratio"] - 1) <= MEMORY_LIMIT} if is_judged else {}) | found


def memory_figures(planned: Any, measured: int, mode: str, compiled: bool) -> dict[str, Any]:
    """Returns planned and measured bytes, and how the activations compare.

    The state is exact, so the difference is one of the activations and the loss.
    """
    total = planned.total - planned.buffers
    assumed = planned.activations + planned.loss
    return {
        "planned_bytes": total,
        "measured_bytes": measured,
        "ratio": measured / total,
        "activation_ratio": (measured - total + assumed) / assumed,
        "checkpointing": mode,
        "compiled": compiled,
    }
