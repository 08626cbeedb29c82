"""`python -m launch doctor`: prints facts about the machine and advice, also for bug reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from conf.errors import InputError
from conf.text import GIB
from launch.doctor.advice import advice, compare_speeds, missing_lines
from launch.doctor.config import DoctorConfig
from launch.doctor.facts import collect

WIDTH = 14


def doctor(config: DoctorConfig) -> None:
    """Prints the report. Raises InputError for a device that the machine does not have."""
    import torch

    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise InputError("device=cuda: torch finds no CUDA device. Use device=cpu or device=auto.")
    device = "cuda" if has_cuda and config.device != "cpu" else "cpu"
    facts = collect(device, config.measure)
    if config.json:
        print(json.dumps(facts | {"advice": list(advice(facts))}, indent=1))
        return
    for name, text in report_lines(facts):
        print(f"{name:<{WIDTH}}{text}")


def report_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the report's lines as name and text; an empty name continues the previous one."""
    cpu, precision, memory = facts["cpu"], facts["precision"], facts["memory"]
    system = facts["system"]
    yield "system", f"{system['platform']}, Python {system['python']}"
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores, {cpu['threads']} threads"
    yield "cpu", f"{cpu['name']}, {cores}; torch's own kernels: {cpu['torch_kernels']}"
    yield "", f"features: {' '.join(cpu['features']) or 'none that affect speed'}"
    yield from named("gpu", gpu_lines(facts["gpus"]) or ["none that torch finds"])
    yield "device", f"device=auto selects {'the GPU' if facts['device'] == 'cuda' else 'the CPU'}"
    yield "precision", f"precision=auto selects {precision['auto']}: {precision['reason']}"
    if facts["device"] == "cuda":
        fp8 = "supported" if precision["fp8"] else "not supported (needs compute capability 8.9)"
        yield "", f"precision=fp8 is {fp8}"
    for kind, speed in facts["speed"].items():
        size = speed["size"]
        yield (
            "matrix speed" if kind == "float32" else "",
            f"{kind}: {speed['flops_per_second'] / 1e9:,.1f} GFLOP/s ({size} x {size})",
        )
    if facts["speed"]:
        yield "", compare_speeds(facts["speed"])
    yield (
        "memory",
        f"{memory['available'] / GIB:.1f} GiB available of {memory['total'] / GIB:.1f}",
    )
    for name, place in (("disk", facts["disk"]["here"]), ("", facts["disk"]["temporary"])):
        yield name, free_space(place)
    yield "shared memory", free_space(facts["shared_memory"])
    yield "open files", f"{facts['open_files']['soft']} (at most {facts['open_files']['hard']})"
    interfaces = [interface_line(interface) for interface in facts["interfaces"]]
    yield from named("network", interfaces or ["none"])
    if facts["infiniband"]:
        yield "", f"InfiniBand: {' '.join(facts['infiniband'])}"
    yield from named("environment", [f"{k}={v}" for k, v in facts["variables"].items()])
    programs = [name for name, is_installed in facts["programs"].items() if is_installed]
    yield "programs", " ".join(programs) or "none"
    yield "versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    missing = list(missing_lines(facts["missing"], facts["gpus"]))
    yield from named("missing", missing or ["nothing"])
    yield from named("advice", list(advice(facts)) or ["none"])


def named(name: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yields several texts under one name."""
    for number, text in enumerate(texts):
        yield "" if number else name, text


def gpu_lines(gpus: list[dict[str, Any]]) -> list[str]:
    """Returns one text per GPU."""
    return [
        f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory'] / GIB:.0f} GiB"
        for gpu in gpus
    ]


def free_space(place: dict[str, Any] | None) -> str:
    """Returns the free space of a file system as text."""
    if place is None:
        return "does not exist"
    return f"{place['path']}: {place['free'] / GIB:.1f} GiB free of {place['total'] / GIB:.1f}"


def interface_line(interface: dict[str, Any]) -> str:
    """Returns a network interface as text."""
    speed = interface["mbit_per_second"]
    rate = f", {speed:,} Mbit/s" if speed else ""
    return f"{interface['name']} {interface['state']}{rate}".strip()
