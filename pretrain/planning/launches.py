"""Estimates whether launching kernels takes longer than running them, on a GPU."""

from __future__ import annotations

import torch

from data_pipeline.sampling.recipe import StagePlan
from model.flops import flops_per_token
from pretrain.config import PretrainConfig
from pretrain.hardware import compute_dtype, peak_flops

LAUNCHES = {True: 60, False: 86}
"""Kernels per block in forward and backward, compiled or not, counted by tests/hollow's trace."""
BLOCK_SECONDS = {True: 0.004, False: 0.008}
"""Host seconds per block and micro-batch, with FSDP2's and autograd's part (assumed).

A slow core (2 GHz) took 0.014 s for a compiled block of Danube-1.8B."""
SHARE_OF_PEAK = 0.5
"""Fraction of peak FLOP/s that the GPU reaches (assumed)."""


def launch_note(config: PretrainConfig, plan: StagePlan, device: torch.device) -> str:
    """Returns a sentence if launches bound the steps of a stage, else an empty string."""
    parallel = config.parallel
    if parallel.cuda_graphs:
        return ""
    peak, _ = peak_flops(device, compute_dtype(config.precision))
    per_token = min(flops_per_token(config.model, stage.seq_len) for stage in plan.own_stages)
    tokens = parallel.micro_batch_tokens
    return describe(
        config.model.num_layers,
        parallel.compile is True,
        tokens,
        tokens * per_token / (parallel.cp * parallel.tp) / (peak * SHARE_OF_PEAK),
    )


def describe(layers: int, compiled: bool, tokens: int, gpu_seconds: float) -> str:
    """Returns the sentence for a micro-batch, or an empty string if the GPU takes longer."""
    host_seconds = layers * BLOCK_SECONDS[compiled]
    if host_seconds < gpu_seconds:
        return ""
    kernels = layers * LAUNCHES[compiled]
    return (
        f"parallel.micro_batch_tokens={tokens}: a micro-batch is about {kernels:,} kernels, which "
        f"take the host about {host_seconds * 1e3:.0f} ms to launch and the GPU about "
        f"{gpu_seconds * 1e3:.0f} ms to run. Larger micro-batches, or parallel.cuda_graphs=true on "
        "a single GPU, make the steps faster."
    )
