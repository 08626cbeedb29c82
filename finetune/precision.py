"""`precision=auto` of tuning: the same on all processes, and after a restart what it was."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from conf.errors import InputError
from conf.machine import DTYPES, Verdict, bf16_verdict, processor, slow_warning
from finetune.config import SftConfig
from finetune.resume import last_checkpoint, precision_before


def on_cpu(config: SftConfig) -> bool:
    """Whether to tune on the CPU."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch finds no CUDA device here.")
    return config.device == "cpu" or not torch.cuda.is_available()


def settle_precision(config: SftConfig, folder: Path, processes: int, writes: bool) -> str:
    """Returns `bf16` or `fp32`, the same on all processes, each of which calls it; the one that
    writes prints why.

    folder: where the tuning is staged: what one of its checkpoints was made with is kept.
    """
    found = processor("cpu" if on_cpu(config) else "cuda")
    if config.precision != "auto":
        setting = f"precision={config.precision}"
        warning = slow_warning(setting, DTYPES[config.precision], found, "precision=auto")
        if warning and writes:
            print(f"warning: {warning}", flush=True)
        return config.precision
    checkpoint = last_checkpoint(folder) if writes else None
    made_with = precision_before(checkpoint) if checkpoint is not None else None
    verdicts, made_with = _of_all(config, bf16_verdict(found), made_with, processes)
    precision, reason = decide(verdicts, made_with)
    if writes:
        print(reason, flush=True)
    return precision


def decide(verdicts: list[Verdict], made_with: str | None) -> tuple[str, str]:
    """Returns the precision of all processes, and a sentence on why.

    verdicts: of each process on its bf16. made_with: what the checkpoint that is continued from was
    made with, None where there is none.
    """
    lacking = next((verdict for verdict in verdicts if not verdict.native), None)
    fitting = "fp32" if lacking else "bf16"
    reason = (lacking or verdicts[0]).reason
    if made_with is None:
        return fitting, f"precision=auto takes {fitting}: {reason}."
    kept = f"precision=auto keeps {made_with}, with which this tuning began"
    if made_with == fitting:
        return made_with, f"{kept}."
    return made_with, f"{kept}, though this machine would take {fitting} ({reason})."


def _of_all(
    config: SftConfig, verdict: Verdict, made_with: str | None, processes: int
) -> tuple[list[Verdict], str | None]:
    """Verdicts of all processes, and what process 0, which knows the folder, says."""
    if processes == 1:
        return [verdict], made_with
    from accelerate import PartialState

    PartialState(cpu=on_cpu(config))  # joins the group that transformers then finds
    found: list[tuple[Verdict, str | None]] = [(verdict, made_with)] * processes
    dist.all_gather_object(found, (verdict, made_with))
    return [one for one, _ in found], found[0][1]
