"""The choice that `precision=auto` makes, which all processes share and a resumed run keeps."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from conf.errors import InputError
from conf.machine import DTYPES, Verdict, bf16_verdict, processor, slow_warning
from finetune.checkpoints import last_checkpoint, recorded_precision
from finetune.config import SftConfig


def uses_cpu(config: SftConfig) -> bool:
    """Returns whether to tune on the CPU. Raises InputError if device=cuda is not available."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch finds no CUDA device. Use device=cpu or device=auto.")
    return config.device == "cpu" or not torch.cuda.is_available()


def agree_on_precision(config: SftConfig, folder: Path, processes: int, writes: bool) -> str:
    """Returns `bf16` or `fp32`, the same on all processes.

    Every process calls it; the process that writes prints the reason.

    Args:
        config: the settings of the run.
        folder: the work folder; the precision of its last checkpoint is kept.
        processes: number of processes.
        writes: whether this process reads the folder and prints messages.
    """
    found = processor("cpu" if uses_cpu(config) else "cuda")
    if config.precision != "auto":
        setting = f"precision={config.precision}"
        warning = slow_warning(setting, DTYPES[config.precision], found, "precision=auto")
        if warning and writes:
            print(f"warning: {warning}", flush=True)
        return config.precision
    checkpoint = last_checkpoint(folder) if writes else None
    earlier = recorded_precision(checkpoint) if checkpoint is not None else None
    verdicts, earlier = _gather(config, bf16_verdict(found), earlier, processes)
    precision, reason = choose_precision(verdicts, earlier)
    if writes:
        print(reason, flush=True)
    return precision


def choose_precision(verdicts: list[Verdict], earlier: str | None) -> tuple[str, str]:
    """Returns the precision of all processes, and a sentence with the reason.

    Args:
        verdicts: the verdict of each process on whether its hardware has bf16 units.
        earlier: precision of the checkpoint to resume, or None.
    """
    lacking = next((verdict for verdict in verdicts if not verdict.native), None)
    fitting = "fp32" if lacking else "bf16"
    reason = (lacking or verdicts[0]).reason
    if earlier is None:
        return fitting, f"precision=auto selects {fitting}: {reason}."
    kept = f"precision=auto keeps {earlier}, the precision at the run's last start"
    if earlier == fitting:
        return earlier, f"{kept}."
    return earlier, f"{kept}, but a new run on this machine would use {fitting} ({reason})."


def _gather(
    config: SftConfig, verdict: Verdict, earlier: str | None, processes: int
) -> tuple[list[Verdict], str | None]:
    """Returns the verdicts of all processes, and the earlier precision that process 0 found."""
    if processes == 1:
        return [verdict], earlier
    from accelerate import PartialState

    PartialState(cpu=uses_cpu(config))  # joins the process group that transformers then uses
    found: list[tuple[Verdict, str | None]] = [(verdict, earlier)] * processes
    dist.all_gather_object(found, (verdict, earlier))
    return [one for one, _ in found], found[0][1]
