"""Describes the machine, and finds its peak FLOP/s, which is the denominator of MFU."""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from conf.machine import cpu_name, matrix_speed, package_versions

PEAKS: tuple[tuple[str, float, float], ...] = (
    # (pattern of the device name, FLOP/s in bf16, in fp8): dense tensor-core peaks of the vendors'
    # data sheets, with the variants of a chip before the chip itself; 0 without fp8.
    (r"GB200", 2500e12, 5000e12),
    (r"B200", 2250e12, 4500e12),
    (r"(H100|H200) NVL", 835.5e12, 1671e12),
    (r"H100 PCIe", 756.5e12, 1513e12),
    (r"H100|H200|H800|GH200", 989.4e12, 1978.9e12),
    (r"H20", 148e12, 296e12),
    (r"A100|A800", 312e12, 0.0),
    (r"A40", 149.7e12, 0.0),
    (r"A30", 165e12, 0.0),
    (r"L40S", 362e12, 733e12),
    (r"L40", 181e12, 362e12),
    (r"L4", 121e12, 242e12),
    (r"MI300X", 1307.4e12, 2614.9e12),
)
PACKAGES = (
    *("torch", "triton", "torchao", "flash-attn", "megatron-core", "numpy"),
    *("datasets", "tokenizers", "hydra-core", "wandb"),
)
"""Packages whose versions `env.json` states, as far as they are installed."""


def compute_dtype(precision: str) -> torch.dtype:
    """Returns the dtype of activations and gathered weights; fp8 is for matrix products only."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Returns the peak FLOP/s of one device, and the source of the number.

    For a GPU in the table, the number is from its data sheet. For other devices, it is measured
    with a matrix product that uses the threads of this process.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        found = data_sheet(name)
        if found is not None:
            return found[0], f"{name} data sheet, dense bf16"
    kind = str(dtype).removeprefix("torch.")
    speed = matrix_speed(kind, device)
    return speed.flops_per_second, f"measured, {speed.size}x{speed.size} {kind} product"


def fp8_peak(device: torch.device) -> float | None:
    """Returns the dense fp8 peak from a GPU's data sheet; None if it is unknown."""
    found = data_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return (found[1] or None) if found is not None else None


def data_sheet(name: str) -> tuple[float, float] | None:
    """Returns the dense peaks in bf16 and fp8 of the GPU that torch calls `name`.

    Returns None for GPUs that are not in the table, and for a slice of a GPU (MIG).
    """
    if "MIG" in name:
        return None
    for pattern, bf16, fp8 in PEAKS:
        if re.search(rf"\b({pattern})\b", name):
            return bf16, fp8
    return None


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Returns the environment of a run: git commit, packages, hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": sys.version.split()[0],
        "packages": package_versions(PACKAGES),
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
    """Returns the peak memory of this process on its device since `reset_memory_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_record(device: torch.device) -> dict[str, int]:
    """Returns what a step's record says of memory, counted since `reset_memory_peak`.

    On a GPU that is, in addition to the peak, how often torch's allocator had to free its cache
    before it could allocate (each time waits for the device), and how often that did not suffice.
    """
    if device.type != "cuda":
        return {"memory_peak_bytes": memory_peak_bytes(device)}
    stats = torch.cuda.memory_stats(device)
    return {
        "memory_peak_bytes": stats["allocated_bytes.all.peak"],
        "allocator_retries": stats["num_alloc_retries"],
        "allocator_ooms": stats["num_ooms"],
    }


def reset_memory_peak(device: torch.device) -> None:
    """Resets the memory peak, so that it excludes the setup, such as the timing of attention."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.reset_accumulated_memory_stats(device)
        return
    with suppress(OSError):  # only Linux can reset the peak of the resident set
        Path("/proc/self/clear_refs").write_text("5")
