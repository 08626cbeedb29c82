"""Where a model runs."""

from __future__ import annotations

from conf.errors import InputError


def device_of(setting: str) -> str:
    """`auto` is the GPU where there is one; raises InputError where what is asked for is not."""
    import torch

    has_cuda = torch.cuda.is_available()
    if setting == "auto":
        return "cuda" if has_cuda else "cpu"
    if setting not in ("cpu", "cuda"):
        raise InputError(f"device={setting}: expected one of auto, cpu, cuda.")
    if setting == "cuda" and not has_cuda:
        raise InputError("device=cuda: torch finds no CUDA device here.")
    return setting
