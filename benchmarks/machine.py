"""Describes the machine on which a benchmark ran."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "torchao", "flash-attn", "transformers", "litgpt")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Returns the processor, or the GPU with its driver and power limit, threads and versions."""
    import torch

    found: dict[str, Any] = {}
    if device == "cuda":
        asked = "name,driver_version,power.limit,memory.total"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                check=True,
            )
            found["gpu"] = told.stdout.splitlines()[0]
        found["cuda"] = torch.version.cuda
    else:
        found["cpu"] = platform.processor()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            named = next(line for line in lines if line.startswith("model name"))
            found["cpu"] = named.split(":")[1].strip()
        found["threads"] = torch.get_num_threads()
        with contextlib.suppress(AttributeError):
            found["amx"] = torch.cpu._is_amx_tile_supported()
            found["avx512_bf16"] = torch.cpu._is_avx512_bf16_supported()
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"python": platform.python_version()}


def described(found: dict[str, Any]) -> str:
    """Formats the description in one line."""
    return ", ".join(f"{key} {value}" for key, value in found.items())
