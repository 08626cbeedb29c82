"""`parallel=auto`: the best layout of the plan of memory for the processes that are here."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.distributed as dist

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan
from pretrain.config import MESH, ParallelConfig, PretrainConfig
from pretrain.distributed import Processes
from pretrain.layout_choice import GIB, Machine, Need, choose, optimizer_name, options


def pick_layout(config: PretrainConfig, plan: StagePlan, machine: Machine) -> list[str]:
    """Sets the layout, micro-batch and recomputation of `config.parallel`, which is `auto`, and
    returns why, a line or two.

    Raises InputError where nothing fits, or where a size is given too.
    """
    defaults = {field.name: field.default for field in fields(ParallelConfig)}
    for name in MESH:
        if getattr(config.parallel, name) != defaults[name]:
            raise InputError(
                f"parallel.{name}={getattr(config.parallel, name)} is given, but parallel=auto "
                "picks it: drop it, or take parallel=fsdp."
            )
    need = Need(
        config.model,
        config.precision,
        optimizer_name(config.optim),
        config.parallel,
        tuple(stage.seq_len for stage in plan.stages),
        math.gcd(*plan.batches),  # what divides it divides every step
    )
    best = choose(need, machine)
    passed = [option for option in options(need, machine) if option.problem is not None]
    assert best.memory is not None
    config.parallel = best.parallel
    sizes = " x ".join(f"{name}={getattr(best.parallel, name)}" for name in MESH)
    parts = sorted(asdict(best.memory).items(), key=lambda part: -part[1])[:3]
    lines = [
        f"parallel=auto takes {best.name}: {sizes}, "
        f"micro_batch_tokens={best.parallel.micro_batch_tokens}, "
        f"activation_checkpointing={best.parallel.activation_checkpointing}; planned "
        f"{best.memory.total / GIB:.2f} GiB of {machine.memory / GIB:.2f} a process "
        f"({', '.join(f'{name} {size / GIB:.2f}' for name, size in parts)})"
    ]
    if passed:
        lines.append(f"passed over: {passed[0].name} {passed[0].problem}")
    return lines


def measure(processes: Processes) -> Machine:
    """What the least of all processes has, so that all choose the same."""
    node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = processes.device
    least = torch.tensor([memory_each(device, node), node], device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    memory, node = least.tolist()
    return Machine(processes.world_size, node, memory, device.type)


def memory_each(device: torch.device, node: int) -> int:
    """Returns the bytes that each of `node` processes on this machine can have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // node


def available_memory() -> int:
    """Bytes that this machine, or the container that we are in, can still give."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free
