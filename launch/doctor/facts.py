"""Collects facts about this machine as plain values, without judging them.

Parts of the system that cannot be read are reported as missing.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from conf.machine import (
    BF16_FEATURES,
    FP16_FEATURES,
    bf16_verdict,
    cpu_name,
    fitting_precision,
    matrix_speed,
    processor,
)
from pretrain.planning.auto import available_memory

NAME = "headwater"
SHOWN_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "asimd", "sve", *BF16_FEATURES)
"""CPU features that the report shows, in addition to `FP16_FEATURES`."""
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
    *("NCCL_IB_DISABLE", "HF_HUB_OFFLINE", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR"),
)
"""Environment variables that affect a run."""
PROGRAMS = ("git", "g++", "clang++", "make", "sbatch", "nvidia-smi")


def collect(device: str, measure: bool) -> dict[str, Any]:
    """Returns all facts; `device` is cpu or cuda, and `measure` adds measured speeds."""
    import torch

    found = processor(device)
    verdict = bf16_verdict(found)
    features = processor("cpu").features & {*SHOWN_FEATURES, *FP16_FEATURES}
    return {
        "system": {"platform": platform.platform(), "python": sys.version.split()[0]},
        "cpu": {
            "name": cpu_name(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "features": sorted(features),
            "torch_kernels": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
        },
        "gpus": gpus(),
        "gpu_driver": Path("/proc/driver/nvidia/version").exists(),
        "device": device,
        "precision": {
            "auto": fitting_precision(found),
            "reason": verdict.reason,
            "fp8": device == "cuda" and found.capability is not None and found.capability >= (8, 9),
        },
        "speed": speeds(device) if measure else {},
        "memory": {"available": available_memory(), "total": total_memory()},
        "disk": {"here": space("."), "temporary": space(os.environ.get("TMPDIR", "/tmp"))},
        "shared_memory": space("/dev/shm"),
        "open_files": dict(zip(("soft", "hard"), open_files(), strict=True)),
        "interfaces": interfaces(Path("/sys/class/net")),
        "infiniband": names_in(Path("/sys/class/infiniband")),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "programs": {name: shutil.which(name) is not None for name in PROGRAMS},
        "versions": versions(),
        "missing": missing(requirements(), installed()),
    }


def usable_cores() -> int:
    """Returns the number of cores that this process may use; only Linux reports a restriction."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def speeds(device: str) -> dict[str, Any]:
    """Returns the measured speed of matrix products by type."""
    return {kind: asdict(matrix_speed(kind, device)) for kind in ("float32", "bfloat16")}


def gpus() -> list[dict[str, Any]]:
    """Returns the GPUs that torch sees."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        capability = f"{gpu.major}.{gpu.minor}"
        found.append({"name": gpu.name, "capability": capability, "memory": gpu.total_memory})
    return found


def total_memory() -> int:
    """Returns the size of the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def space(path: str) -> dict[str, Any] | None:
    """Returns total and free bytes of the file system of a path, or None if it does not exist."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return {"path": str(Path(path).absolute()), "total": usage.total, "free": usage.free}


def open_files() -> tuple[int, int]:
    """Returns the soft and the hard limit on open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def interfaces(folder: Path) -> list[dict[str, Any]]:
    """Returns the network interfaces with their state and, if the driver reports it, Mbit/s."""
    found = []
    for name in names_in(folder) or [name for _, name in socket.if_nameindex()]:
        interface: dict[str, Any] = {"name": name, "state": "", "mbit_per_second": None}
        with suppress(OSError):
            interface["state"] = (folder / name / "operstate").read_text().strip()
        with suppress(OSError, ValueError):
            speed = int((folder / name / "speed").read_text())
            interface["mbit_per_second"] = speed if speed > 0 else None
        found.append(interface)
    return found


def names_in(folder: Path) -> list[str]:
    """Returns the names in a folder, or [] if it does not exist."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def versions() -> dict[str, str]:
    """Returns the versions of the project and of its installed requirements."""
    import torch

    required = {requirement.name for requirement in requirements()}
    packages = installed()
    found = {name: packages[name] for name in sorted(required & packages.keys())}
    return {NAME: packages.get(NAME, "not installed as a package"), **found, "cuda": cuda(torch)}


def cuda(torch: Any) -> str:
    """Returns the CUDA or ROCm version that this torch was built for."""
    return str(torch.version.cuda or torch.version.hip or "none (CPU build)")


def requirements() -> list[Requirement]:
    """Returns the requirements of the project; those of an extra have a marker that names it."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        with suppress(InvalidRequirement):
            found.append(Requirement(line))
    return found


def installed() -> dict[str, str]:
    """Returns the versions of the installed packages by normalized name."""
    found = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name:
            found[normalize(name)] = package.version
    return found


def normalize(name: str) -> str:
    """Returns the name of a package in pip's normalized form."""
    return name.lower().replace("_", "-").replace(".", "-")


def missing(required: Sequence[Requirement], packages: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the packages of each extra that are missing or have a wrong version.

    The base install is listed as the extra `base`, and complete extras are omitted.
    """
    found: dict[str, list[str]] = {}
    for one in required:
        extra = extra_of(one)
        version = packages.get(normalize(one.name))
        if version is None:
            found.setdefault(extra, []).append(one.name)
        elif not one.specifier.contains(version, prereleases=True):
            found.setdefault(extra, []).append(f"{one.name}{one.specifier} (found {version})")
    return found


def extra_of(requirement: Requirement) -> str:
    """Returns the extra that a requirement belongs to, or `base`."""
    text = str(requirement.marker or "")
    return text.split("extra == ")[1].split()[0].strip("\"')") if "extra == " in text else "base"
