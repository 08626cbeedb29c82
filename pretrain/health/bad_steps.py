"""Steps that would harm the weights: what is not finite, and spikes of the loss or the gradient's
norm.

Each step is judged on the device before its update, by all ranks together, and a bad one updates
nothing; no host waits for the verdict. After some in a row the weights go back to a checkpoint
from before the first of them and the data in between are left out, as for PaLM (arXiv 2204.02311,
section 5.1). A step keeps its data whatever became of it, so position, learning rate and tokens
stay functions of the step alone, and the ledger names the steps whose tokens are in no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conf.errors import EXIT_GAVE_UP, InputError, RunAborted
from pretrain.checkpoints.find import find
from pretrain.checkpoints.read import load
from pretrain.health.config import HealthConfig
from pretrain.hooks import Hook, TrainerView
from pretrain.records import read_records

GOOD, SPIKE, NOT_FINITE = 0.0, 1.0, 2.0
"""Verdicts; the worst of all ranks counts."""
LEAST_STEPS = 16
"""Good steps of a stage before its spikes are judged."""
LEAST_SPREAD = 0.01
"""Of the median: a loss that hardly moves does not make every step a spike."""


def robust_limit(values: list[float], score: float) -> float:
    """The value whose robust score is `score`: median + score * 1.4826 * MAD (Iglewicz and Hoaglin,
    1993), where 1.4826 makes the median absolute deviation the standard deviation of a normal."""
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return middle + score * max(spread, LEAST_SPREAD * abs(middle))


class BadSteps(Hook):
    """All ranks. `judge` is called inside the step, the other methods around it.

    Limits for step n come from the records of steps up to n - 2, which every rank has by then,
    whatever made it publish its records.
    """

    def __init__(self, config: HealthConfig, world_size: int) -> None:
        self.config = config
        self.world_size = world_size
        self.seen: dict[int, Mapping[str, Any]] = {}
        self.rewinds: list[int] = []

    def on_start(self, trainer: TrainerView) -> None:
        """Takes up the window where the process before left it."""
        lines: list[Any] = [[]]
        if trainer.processes.is_main:
            lines = [last_records(Path(trainer.config.run_dir), trainer.step, 2 * self._kept)]
        if self.world_size > 1:
            dist.broadcast_object_list(lines, src=0)
        for record in lines[0]:
            self.on_record(record)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Keeps what was seen of the last steps."""
        step = record["step"]
        if record["kind"] == "train":
            kept = ("stage", "loss", "grad_norm", "bad")
            self.seen[step] = {key: record[key] for key in kept if key in record}
            self.seen.pop(step - self._kept, None)
        elif record.get("event") == "rewind":
            self.rewinds.append(step)

    def judge(self, stage: str, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """The verdict on a step (counted from 1) of all ranks, a 0-d tensor on the device."""
        spike = torch.zeros_like(loss, dtype=torch.bool)
        for value, limit in zip((loss, grad_norm), self.limits(stage, step), strict=False):
            spike |= value > limit
        finite = loss.isfinite() & grad_norm.isfinite()
        verdict = torch.where(finite, spike.float() * SPIKE, NOT_FINITE)
        if self.world_size > 1:
            dist.all_reduce(verdict, op=dist.ReduceOp.MAX)
        return verdict

    def skips(self, verdict: Tensor) -> Tensor:
        """1.0 where the update is left out, else 0.0: `found_inf` of torch's optimizers."""
        least = SPIKE if self.config.spikes == "skip" else NOT_FINITE
        return (verdict >= least).float()

    def describe(self, stage: str, step: int, verdict: float, loss: float, norm: float) -> Any:
        """What a record says of a step: nothing of a good one."""
        if verdict == GOOD:
            return {}
        if verdict == NOT_FINITE:
            return {"bad": "not finite", "skipped": f"loss {loss}, gradient norm {norm}"}
        limits = ", ".join(f"{limit:.4g}" for limit in self.limits(stage, step))
        why = f"spike: loss {loss:.4g}, gradient norm {norm:.4g}, limits {limits}"
        return {"bad": "spike"} | ({"skipped": why} if self.config.spikes == "skip" else {})

    def limits(self, stage: str, step: int) -> tuple[float, ...]:
        """Of loss and gradient norm at a step; none while there are too few steps to tell."""
        good = [
            record
            for number, record in sorted(self.seen.items())
            if number <= step - 2 and record["stage"] == stage and "bad" not in record
        ][-self.config.spike_window :]
        if len(good) < LEAST_STEPS or not self.config.spike_score:
            return ()
        score = self.config.spike_score
        return tuple(robust_limit([r[key] for r in good], score) for key in ("loss", "grad_norm"))

    def after_step(self, trainer: TrainerView) -> None:
        """Goes back after too many bad steps in a row."""
        if not self.config.rewind_after:
            return
        last = trainer.step - 1  # published on all ranks
        first = last + 1
        past_rewind = self.rewinds[-1] if self.rewinds else 0
        while first - 1 > past_rewind and self._counts(first - 1):
            first -= 1
        if last - first + 1 >= self.config.rewind_after:
            self._rewind(trainer, first)

    @property
    def _kept(self) -> int:
        return 2 * self.config.spike_window + self.config.rewind_after + 2

    def _counts(self, step: int) -> bool:
        bad = self.seen.get(step, {}).get("bad")
        return bad == "not finite" or (bad == "spike" and self.config.spikes != "log")

    def _rewind(self, trainer: TrainerView, first_bad: int) -> None:
        trainer.flush()
        cause = f"steps {first_bad} to {trainer.step - 1} were bad ({self.seen[first_bad]['bad']})"
        recent = [s for s in self.rewinds if trainer.step - s <= self.config.spike_window]
        if len(recent) >= self.config.rewinds_at_most:
            raise RunAborted(
                f"{cause}, after {len(recent)} rewinds within {self.config.spike_window} steps: "
                "lower the learning rate, look at the data of these steps (python -m "
                "data_pipeline where), or set health.rewinds_at_most higher.",
                EXIT_GAVE_UP,
            )
        for hook in trainer.hooks:
            hook.before_rewind(trainer)
        answer: list[Any] = [None]
        if trainer.processes.is_main:
            answer = [newest_before(trainer.checkpoints, first_bad)]
        dist.broadcast_object_list(answer, src=0)
        if answer[0] is None:
            raise RunAborted(
                f"{cause}, and {trainer.checkpoints} has no whole checkpoint of a step before "
                f"{first_bad} to go back to: save more often, or keep more of them.",
                EXIT_GAVE_UP,
            )
        path, step = answer[0]
        trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
        load(path, trainer.model, trainer.optimizer)
        if trainer.processes.is_main:
            print(f"warning: {cause}: back to the weights of step {step}, on with new data.")
        trainer.publish({"kind": "event", "event": "rewind", "to_step": step, "cause": cause})
        trainer.must_save = True  # from here on the state cannot be had by training again


def newest_before(folder: Path, step: int) -> tuple[Path, int] | None:
    """The newest whole checkpoint of fewer than `step` steps."""
    names = [path.name for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    for found in sorted((int(name.removeprefix("step_")) for name in names), reverse=True):
        if found < step:
            try:
                return find(folder, str(found))[0], found
            except InputError as error:
                print(f"warning: {error}")
    return None


def last_records(run_dir: Path, step: int, number: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of the last `number` steps up to `step`."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [record for record in read_records(path) if step - number < record["step"] <= step]
