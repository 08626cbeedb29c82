"""What the machine is, and how many FLOP/s it could do: the denominator of MFU."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Dense tensor-core peaks in bf16, from the vendor's data sheets, by a part of the device's name.
PEAK_BF16 = {"H100": 989.4e12, "H200": 989.4e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
PACKAGES = ("torch", "megatron-core", "datasets", "tokenizers", "hydra-core", "wandb", "numpy")


def compute_dtype(precision: str) -> torch.dtype:
    """The type of activations and gathered weights; fp8 is only inside of matrix products."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s of one device and where the number is from: its data sheet, or measured here.

    A CPU, and a GPU that is not in the table, is measured by its own matrix product: an upper
    bound that this process, with its number of threads, can really reach.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_BF16.items():
            if part in name:
                return peak, f"{name} data sheet, dense bf16"
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best, f"measured, {size}x{size} {str(dtype).removeprefix('torch.')} product"


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What a run ran on: git commit, packages, hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": sys.version.split()[0],
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": name or device.type,
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "world_size": world_size,
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def memory_peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: of its GPU, or on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
