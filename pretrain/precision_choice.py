"""Chooses the precision for `precision=auto`, the same on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import OmegaConf

from conf.machine import bf16_verdict, processor, slow_warning
from pretrain.checkpoints import find
from pretrain.config import PRECISIONS, PretrainConfig
from pretrain.hardware import compute_dtype
from pretrain.processes import Processes


@dataclass(frozen=True)
class Report:
    """The findings of one rank about the precision.

    native: whether the rank's hardware has bf16 matrix products.
    reason: the reason for that verdict.
    made_with: the precision of earlier starts of the run, which only rank 0 reads.
    warning: a warning to print, or an empty string.
    """

    native: bool
    reason: str
    made_with: str | None
    warning: str


def settle_precision(config: PretrainConfig, processes: Processes) -> str:
    """Sets `config.precision` if it is `auto`, and returns the reason. Every rank must call it.

    Rank 0 prints the reason, or a warning with a measurement if a CPU has no instructions for the
    given precision.
    """
    asked = config.precision
    found = processor(processes.device)
    verdict = bf16_verdict(found)
    warning, made_with = "", None
    if asked == "auto":
        made_with = precision_before(config) if processes.is_main else None
    else:
        kind = str(compute_dtype(asked)).removeprefix("torch.")
        warning = slow_warning(f"precision={asked}", kind, found, "precision=auto")
    reports: list[Any] = [None] * processes.world_size
    dist.all_gather_object(reports, Report(verdict.native, verdict.reason, made_with, warning))
    config.precision, reason = decide(asked, reports)
    if processes.is_main:
        line = next((f"warning: {r.warning}" for r in reports if r.warning), reason)
        print(line, end="\n" if line else "", flush=True)
    return reason


def decide(asked: str, reports: list[Report]) -> tuple[str, str]:
    """Returns the precision for all ranks and the reason, which is empty if `asked` is not auto."""
    if asked != "auto":
        return asked, ""
    lacking = next((rank for rank, report in enumerate(reports) if not report.native), None)
    fitting = "bf16" if lacking is None else "fp32"
    reason = reports[lacking or 0].reason
    if lacking:
        reason = f"on rank {lacking}, {reason}"
    made_with = reports[0].made_with
    if made_with is None:
        return fitting, f"precision=auto selects {fitting}: {reason}."
    kept = f"precision=auto keeps {made_with}, the precision at the run's last start"
    if compute_dtype(made_with) == compute_dtype(fitting):
        return made_with, f"{kept}."
    return made_with, (
        f"{kept}, but a new run on these machines would use {fitting} ({reason}). To change the "
        f"precision, add precision={fitting} 'allow_change=[precision]'."
    )


def precision_before(config: PretrainConfig) -> str | None:
    """Returns the precision of the last start of a run that has checkpoints.

    Returns None without checkpoints, or if they do not state a precision.
    """
    run_dir = Path(config.run_dir)
    manifests = find.manifests(run_dir / "checkpoints", config.checkpoint.copy_to)
    if manifests is None:
        return None
    manifests = [manifest for manifest in manifests if "precision" in manifest]
    path = run_dir / "config.yaml"
    started: Any = OmegaConf.load(path) if path.is_file() else {}
    before = started.get("precision") or next((m["precision"] for m in manifests), None)
    return before if before in PRECISIONS else None
