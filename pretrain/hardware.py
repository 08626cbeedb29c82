"""What the machine is, and how many FLOP/s it could do: the denominator of MFU."""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from conf.machine import cpu_name, matrix_speed

PEAKS: tuple[tuple[str, float, float], ...] = (
    # (pattern of the device's name, FLOP/s in bf16, in fp8): dense tensor-core peaks of the
    # vendors' data sheets, the variants of a chip before the chip; 0 where it has no fp8.
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
PACKAGES = ("torch", "megatron-core", "datasets", "tokenizers", "hydra-core", "wandb", "numpy")


def compute_dtype(precision: str) -> torch.dtype:
    """The type of activations and gathered weights; fp8 is only inside of matrix products."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Returns the FLOP/s of one device and where the number is from: its data sheet, or measured.

    A CPU, and a GPU that is not in the table, is measured by its own matrix product: an upper
    bound that this process, with its number of threads, can really reach.
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
    """Returns the dense fp8 peak of a GPU's data sheet; None where it has none, or is not known."""
    found = data_sheet(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return (found[1] or None) if found is not None else None


def data_sheet(name: str) -> tuple[float, float] | None:
    """Returns the dense peaks in bf16 and fp8 of the GPU that torch calls `name`; None where it is
    not in the table, and for a slice of one (MIG), which has a part of its peak."""
    if "MIG" in name:
        return None
    for pattern, bf16, fp8 in PEAKS:
        if re.search(rf"\b({pattern})\b", name):
            return bf16, fp8
    return None


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What a run ran on: git commit, packages, hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
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
    """Returns the most memory this process has held since `reset_memory_peak`: of its GPU, or on a
    CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_memory_peak(device: torch.device) -> None:
    """Begins to count the peak again: what the set-up took, such as the timing of attention, is not
    what a step needs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux resets the resident set's high-water mark, others keep it
        Path("/proc/self/clear_refs").write_text("5")
