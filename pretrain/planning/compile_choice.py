"""Resolves `parallel.compile=auto`: decides whether compiling the blocks saves time in a run."""

from __future__ import annotations

import importlib.util
import os
import shutil

from conf.machine import bf16_verdict, processor
from data_pipeline.sampling.recipe import StagePlan
from model.flops import flops_per_token
from pretrain.config import PretrainConfig
from pretrain.hardware import compute_dtype, peak_flops
from pretrain.processes import Processes

CPU_GAIN = 1.3
"""Speed-up from compiled blocks on CPUs with bf16 products (1.26 to 1.33 in benchmarks/LOG.md).

In fp32 there is no speed-up, because nearly all of a step is matrix products."""
CPU_SHARE_OF_PEAK = 0.5
"""Fraction of peak FLOP/s that an eager step reaches on a CPU (assumed)."""
COMPILE_SECONDS = 80
"""Seconds to compile training and validation for one sequence length on two cores.

Measured values were 51 to 82."""


def choose_compile(
    config: PretrainConfig, plan: StagePlan, processes: Processes, before: bool | None
) -> tuple[bool, str]:
    """Returns whether to compile, and the reason as a sentence.

    before: setting of the last start if the run is resumed on the same kind of device, else None.
    """
    key = "parallel.compile=auto"
    is_fp8 = any(config.precision_of(stage).startswith("fp8") for stage in plan.own_stages)
    on_gpu = processes.device.type == "cuda"
    if before is not None and not (is_fp8 and on_gpu):
        return before, f"{key} keeps {str(before).lower()}, the value at the run's last start."
    missing = missing_compiler(processes.device.type)
    if missing is not None:
        return False, f"{key} does not compile: {missing}."
    if on_gpu:
        return True, f"{key} compiles: on a GPU, compiled blocks take less time and memory."
    if config.precision == "fp32":
        return False, f"{key} does not compile: on a CPU, compiled blocks are not faster in fp32."
    verdict = bf16_verdict(processor(processes.device))
    if not verdict.native:
        return False, f"{key} does not compile: {verdict.reason}."
    peak, _ = peak_flops(processes.device, compute_dtype(config.precision))
    seconds = eager_seconds(config, plan, peak * processes.world_size)
    lengths = len({stage.seq_len for stage in plan.own_stages})
    return decide(seconds, lengths)


def decide(eager: float, lengths: int) -> tuple[bool, str]:
    """Returns whether compiling saves time on a CPU, and the reason as a sentence.

    eager: seconds that the run takes without compiling.
    lengths: number of different sequence lengths.
    """
    saved, spent = eager * (1 - 1 / CPU_GAIN), COMPILE_SECONDS * lengths
    does = "compiles" if saved > spent else "does not compile"
    return saved > spent, (
        f"parallel.compile=auto {does}: compiling would save {saved:,.0f} s of about {eager:,.0f} "
        f"s and take {spent} s."
    )


def eager_seconds(config: PretrainConfig, plan: StagePlan, peak: float) -> float:
    """Estimates the seconds that a run takes without compiling. peak: FLOP/s of all processes."""
    flops = sum(
        stage.tokens * flops_per_token(config.model, stage.seq_len) for stage in plan.own_stages
    )
    part = min(1.0, (config.stop_after or plan.total_steps) / plan.total_steps)
    return part * flops / (peak * CPU_SHARE_OF_PEAK)


def missing_compiler(device: str) -> str | None:
    """Returns what torch.compile lacks on this machine, as a clause, or None."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton, which compiles for GPUs, is not installed"
        names = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    else:
        names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    if not any(name and shutil.which(name) for name in names):
        return f"this machine has no C compiler ({', '.join(name for name in names if name)})"
    return None
