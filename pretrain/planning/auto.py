"""Resolves `parallel=auto` and the other keys of `parallel` that are auto.

They are `micro_batch_tokens`, `sharded_accumulation` and `compile`. The choices depend on the
memory plan, on the length of the run and on its processes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from conf.errors import InputError
from conf.text import GIB
from data_pipeline.sampling.dealing import blank_note
from data_pipeline.sampling.recipe import StagePlan
from pretrain.checks import check_layout
from pretrain.config import AUTO, MESH, ParallelConfig, PretrainConfig
from pretrain.planning.compile_choice import choose_compile
from pretrain.planning.launches import launch_note
from pretrain.planning.layouts import (
    Machine,
    accumulations,
    candidates,
    choose,
    fit,
    requirements_of,
)
from pretrain.planning.memory import Sizes
from pretrain.processes import Processes


def settle_parallel(config: PretrainConfig, plan: StagePlan, processes: Processes) -> list[str]:
    """Replaces each `auto` in `config.parallel`, and returns the reasons as sentences.

    Every rank must call it, and all ranks get the same result. A run that is resumed in the same
    layout keeps its micro-batch and how it accumulates gradients, and one that is resumed on the
    same kind of device keeps `compile`. Raises InputError if no layout fits.
    """
    answer: list[Any] = [previous_settings(config, processes) if processes.is_main else None]
    dist.broadcast_object_list(answer, src=0)
    before: dict[str, Any] = answer[0]
    reasons: list[str] = []
    if config.parallel.auto:
        reasons = pick_layout(config, plan, measure_machine(processes))
    mesh = check_layout(config.parallel, config.model, processes.world_size)
    sizes = Sizes(*mesh)
    if config.parallel.cuda_graphs:  # the first graph of a step creates the reduced gradients
        config.parallel = replace(config.parallel, sharded_accumulation=True)
    if config.parallel.sharded_accumulation == AUTO and "sharded_accumulation" in before:
        kept = before["sharded_accumulation"]
        config.parallel = replace(config.parallel, sharded_accumulation=kept)
    if config.parallel.micro_batch_tokens == AUTO:
        machine = measure_machine(processes)
        reasons.append(pick_micro_batch(config, plan, machine, sizes, before))
    if config.parallel.sharded_accumulation == AUTO:
        reasons += pick_accumulation(config, plan, sizes, processes)
    if config.parallel.compile == AUTO:
        answer = [None]
        if processes.is_main:
            answer = [choose_compile(config, plan, processes, before.get("compile"))]
        dist.broadcast_object_list(answer, src=0)
        compiled, reason = answer[0]
        config.parallel = replace(config.parallel, compile=compiled)
        reasons.append(reason)
    if processes.device.type == "cuda" and (bound := launch_note(config, plan, processes.device)):
        reasons.append(bound)
    note = blank_note(plan, mesh[0] * mesh[1], config.parallel.micro_batch_tokens)
    return reasons + ([note] if note else [])


def previous_settings(config: PretrainConfig, processes: Processes) -> dict[str, Any]:
    """Returns the settings that a resumed run keeps from its last start; empty for a new run.

    They are `micro_batch_tokens` and `sharded_accumulation` if the layout is the same, and
    `compile` if the kind of device is the same.
    """
    run_dir = Path(config.run_dir)
    if not any((run_dir / "checkpoints").glob("step_*")):
        return {}
    try:
        then = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
        machine = json.loads((run_dir / "env.json").read_text())
        now = asdict(config.parallel)
        found = {}
        layout = (*MESH, "activation_checkpointing")
        same_layout = all(then[key] == now[key] for key in layout)
        if same_layout and machine["world_size"] == processes.world_size:
            found["micro_batch_tokens"] = then["micro_batch_tokens"]
            found["sharded_accumulation"] = then.get("sharded_accumulation", False)
        if machine["device_type"] == processes.device.type:
            found["compile"] = then["compile"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}  # without these files, both are chosen again
    return found


def pick_micro_batch(
    config: PretrainConfig,
    plan: StagePlan,
    machine: Machine,
    sizes: Sizes,
    before: dict[str, Any],
) -> str:
    """Replaces `micro_batch_tokens=auto` by a size that fits, and returns why it was selected."""
    requirements = requirements_of(config, plan)
    kept = before.get("micro_batch_tokens")
    if isinstance(kept, int) and kept >= max(requirements.seq_lens):
        parallel = replace(config.parallel, micro_batch_tokens=kept)
        if fit(replace(requirements, parallel=parallel), sizes, machine).problem is None:
            config.parallel = parallel
            return (
                f"parallel.micro_batch_tokens=auto keeps {kept}, the value at the run's last start."
            )
    best = fit(requirements, sizes, machine)
    if best.memory is None:
        raise InputError(f"{best.problem}.")
    tokens, sharded = best.parallel.micro_batch_tokens, best.parallel.sharded_accumulation
    config.parallel = replace(
        config.parallel, micro_batch_tokens=tokens, sharded_accumulation=sharded
    )
    if best.problem is not None:
        return (
            f"warning: parallel.micro_batch_tokens=auto selects {tokens}, the smallest value, "
            f"although according to the memory plan it {best.problem}. Use more processes, "
            "parallel=auto or parallel.activation_checkpointing=full."
        )
    how = ", with sharded_accumulation=true" if sharded else ""
    return (
        f"parallel.micro_batch_tokens=auto selects {tokens}{how}: planned "
        f"{best.memory.total / GIB:.2f} GiB of {machine.memory_bytes / GIB:.2f} per process."
    )


def pick_accumulation(
    config: PretrainConfig, plan: StagePlan, sizes: Sizes, processes: Processes
) -> list[str]:
    """Replaces `sharded_accumulation=auto` for a given micro-batch.

    Returns the reason if gradients are accumulated in shards.
    """
    sharded = False
    if len(accumulations(config.parallel, sizes)) > 1:
        best = fit(requirements_of(config, plan), sizes, measure_machine(processes))
        sharded = best.parallel.sharded_accumulation is True
    config.parallel = replace(config.parallel, sharded_accumulation=sharded)
    if not sharded:
        return []
    return [
        "parallel.sharded_accumulation=auto selects true: whole gradients in float32 do not fit "
        "into memory."
    ]


def pick_layout(config: PretrainConfig, plan: StagePlan, machine: Machine) -> list[str]:
    """Sets the layout, micro-batch and recomputation for `parallel=auto`, and returns the reasons.

    Raises InputError if no layout fits, or if the config also sets a size of the mesh.
    """
    defaults = {field.name: field.default for field in fields(ParallelConfig)}
    for name in MESH:
        if getattr(config.parallel, name) != defaults[name]:
            raise InputError(
                f"parallel.{name}={getattr(config.parallel, name)}: parallel=auto chooses this "
                "size itself. Remove the key, or use parallel=fsdp."
            )
    requirements = requirements_of(config, plan)
    best = choose(requirements, machine)
    rejected = [one for one in candidates(requirements, machine) if one.problem is not None]
    assert best.memory is not None
    config.parallel = best.parallel
    sizes = " x ".join(f"{name}={getattr(best.parallel, name)}" for name in MESH)
    parts = sorted(asdict(best.memory).items(), key=lambda part: -part[1])[:3]
    lines = [
        f"parallel=auto selects {best.name}: {sizes}, "
        f"micro_batch_tokens={best.parallel.micro_batch_tokens}, "
        f"activation_checkpointing={best.parallel.activation_checkpointing}, "
        f"sharded_accumulation={str(best.parallel.sharded_accumulation).lower()}; planned "
        f"{best.memory.total / GIB:.2f} GiB of {machine.memory_bytes / GIB:.2f} per process "
        f"({', '.join(f'{name} {size / GIB:.2f}' for name, size in parts)})"
    ]
    if rejected:
        lines.append(f"rejected: {rejected[0].name}: {rejected[0].problem}")
    return lines


def measure_machine(processes: Processes) -> Machine:
    """Returns a machine with the least memory and the fewest ranks per node of all processes.

    All processes therefore choose the same layout.
    """
    node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = processes.device
    least = torch.tensor([memory_per_process(device, node), node], device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    memory, node = least.tolist()
    return Machine(processes.world_size, node, memory, device.type)


def memory_per_process(device: torch.device, processes: int) -> int:
    """Returns the bytes that each of several processes on this machine can use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // processes


def available_memory() -> int:
    """Returns the free bytes of this machine, or of the container that limits this process."""
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
