"""Skips steps whose loss or gradient is not finite or spikes, and rewinds after several in a row.

All ranks judge each step together, on the device and before its update, so no host waits for the
verdict. A step that is not finite never updates the weights; `health.spikes` decides about spikes.
After several bad steps in a row, the weights return to a checkpoint from before the first of them,
and training continues with new data, as for PaLM (arXiv 2204.02311, section 5.1). A step consumes
its data whatever the verdict, so position, learning rate and tokens depend on the step alone. The
ledger marks the steps whose tokens did not contribute to the weights.
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
from pretrain.checkpoints.find import checkpoint_of_step
from pretrain.health.config import HealthConfig
from pretrain.hooks import Hook, Order, TrainerView

GOOD, SPIKE, NOT_FINITE = 0.0, 1.0, 2.0
"""Verdicts on a step. The largest verdict of any rank applies to all ranks."""
LEAST_STEPS = 16
"""Number of good steps that a stage needs before spikes are detected in it."""
LEAST_SPREAD = 0.01
"""Minimum spread as a fraction of the median. Without it, a flat loss would have many spikes."""


def robust_limit(values: list[float], score: float) -> float:
    """Returns median + score * 1.4826 * MAD, the value whose robust z-score is `score`.

    The factor 1.4826 makes the median absolute deviation (MAD) of normally distributed values
    equal to their standard deviation (Iglewicz and Hoaglin, 1993).
    """
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return middle + score * max(spread, LEAST_SPREAD * abs(middle))


class BadSteps(Hook):
    """Skips the updates of bad steps, and rewinds after several in a row, on all ranks.

    The trainer calls `judge` during a step, and the hook methods before and after it. The limits
    for step n use only the records of steps up to n - 2, which every rank has by then.
    """

    order = Order.CONTROL

    def __init__(self, config: HealthConfig, world_size: int) -> None:
        self.config = config
        self.world_size = world_size
        self.seen: dict[int, dict[str, Any]] = {}
        self.rewinds: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the records of recent steps, and the steps at which the run was rewound."""
        return {"seen": {str(k): v for k, v in self.seen.items()}, "rewinds": self.rewinds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Merges a checkpoint's state into the current one, which is newer after a rewind."""
        self.seen = {int(step): dict(one) for step, one in state["seen"].items()} | self.seen
        self.rewinds = sorted({*state["rewinds"], *self.rewinds})

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Keeps the record of a step for as long as limits or a rewind may need it."""
        step = record["step"]
        if record["kind"] == "train":
            keys = ("stage", "bad") if "bad" in record else ("stage", "loss", "grad_norm")
            self.seen[step] = {key: record[key] for key in keys}
            kept = 2 * self.config.spike_window + self.config.rewind_after + 2
            self.seen.pop(step - kept, None)
        elif record.get("event") == "rewind":
            self.rewinds.append(step)

    def judge(self, stage: str, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Returns the common verdict on a step (counted from 1) as a 0-d tensor on the device."""
        spike = torch.zeros_like(loss, dtype=torch.bool)
        for value, limit in zip((loss, grad_norm), self.limits(stage, step), strict=False):
            spike |= value > limit
        finite = loss.isfinite() & grad_norm.isfinite()
        verdict = torch.where(finite, spike.float() * SPIKE, NOT_FINITE)
        if self.world_size > 1:
            dist.all_reduce(verdict, op=dist.ReduceOp.MAX)
        return verdict

    def skips(self, verdict: Tensor) -> Tensor:
        """Returns the `found_inf` of torch's optimizers: 1.0 to skip the update, else 0.0."""
        least = SPIKE if self.config.spikes == "skip" else NOT_FINITE
        return (verdict >= least).float()

    def describe(
        self, stage: str, step: int, verdict: float, loss: float, norm: float
    ) -> dict[str, str]:
        """Returns the keys to add to the record of a bad step; empty for a good step."""
        if verdict == GOOD:
            return {}
        if verdict == NOT_FINITE:
            return {"bad": "not finite", "skipped": f"loss {loss}, gradient norm {norm}"}
        limits = ", ".join(f"{limit:.4g}" for limit in self.limits(stage, step))
        why = f"spike: loss {loss:.4g}, gradient norm {norm:.4g}, limits {limits}"
        return {"bad": "spike"} | ({"skipped": why} if self.config.spikes == "skip" else {})

    def limits(self, stage: str, step: int) -> tuple[float, ...]:
        """Returns the limits of loss and gradient norm; empty if there are too few good steps."""
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
        """Rewinds after too many bad steps in a row."""
        if not self.config.rewind_after:
            return
        last = trainer.step - 1  # the newest step whose record all ranks have
        first = last + 1
        past_rewind = self.rewinds[-1] if self.rewinds else 0
        while first - 1 > past_rewind and self._counts(first - 1):
            first -= 1
        if last - first + 1 >= self.config.rewind_after:
            self._rewind(trainer, first)

    def _counts(self, step: int) -> bool:
        bad = self.seen.get(step, {}).get("bad")
        return bad == "not finite" or (bad == "spike" and self.config.spikes != "log")

    def _rewind(self, trainer: TrainerView, first_bad: int) -> None:
        trainer.flush()
        cause = f"steps {first_bad} to {trainer.step - 1} were bad ({self.seen[first_bad]['bad']})"
        recent = [s for s in self.rewinds if trainer.step - s <= self.config.spike_window]
        if len(recent) >= self.config.rewinds_at_most:
            raise RunAborted(
                f"{cause}, after {len(recent)} rewinds within {self.config.spike_window} steps. "
                "Lower the learning rate, inspect the data of these steps (python -m "
                "data_pipeline where), or raise health.rewinds_at_most.",
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
                f"{cause}, and {trainer.checkpoints} has no complete checkpoint from before step "
                f"{first_bad}. Lower checkpoint.every_steps, or raise checkpoint.keep_last.",
                EXIT_GAVE_UP,
            )
        path, metadata = answer[0]
        step = metadata["step"]
        trainer.rewind(path, metadata)
        if trainer.processes.is_main:
            print(
                f"warning: {cause}. The weights are back at step {step}, and training continues "
                "with the data after these steps."
            )
        trainer.publish({"kind": "event", "event": "rewind", "to_step": step, "cause": cause})
        trainer.must_save = True  # a restart from an older checkpoint would not reach this state


def newest_before(folder: Path, step: int) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest complete checkpoint from before step `step`, with its metadata."""
    names = [path.name for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    for found in sorted((int(name.removeprefix("step_")) for name in names), reverse=True):
        if found < step:
            try:
                return checkpoint_of_step(folder, str(found))
            except InputError as error:
                print(f"warning: {error}")
    return None
