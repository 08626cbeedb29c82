"""`parallel=auto`, `parallel.micro_batch_tokens=auto` and `parallel.compile=auto`: what the plan of
memory, and the length of the run, say for the processes that are here."""

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
from pretrain.planning.layouts import Machine, Need, choose, fit, options
from pretrain.planning.memory import Sizes
from pretrain.processes import Processes


def settle_parallel(config: PretrainConfig, plan: StagePlan, processes: Processes) -> list[str]:
    """Sets what of `config.parallel` is `auto`, the same on every rank: every rank calls it.
    Returns the reasons, a sentence each.

    A run that is resumed on the same layout keeps its micro-batch, and on the same kind of device
    whether it is compiled. Raises InputError where no layout fits.
    """
    answer: list[Any] = [made_with(config, processes) if processes.is_main else None]
    dist.broadcast_object_list(answer, src=0)
    before: dict[str, Any] = answer[0]
    reasons: list[str] = []
    if config.parallel.auto:
        reasons = pick_layout(config, plan, measure(processes))
    mesh = check_layout(config.parallel, config.model, processes.world_size)
    if config.parallel.micro_batch_tokens == AUTO:
        machine = measure(processes)
        reasons.append(pick_micro_batch(config, plan, machine, Sizes(*mesh), before))
    if config.parallel.compile == AUTO:
        answer = [None]
        if processes.is_main:
            answer = [choose_compile(config, plan, processes, before.get("compile"))]
        dist.broadcast_object_list(answer, src=0)
        compiled, reason = answer[0]
        config.parallel = replace(config.parallel, compile=compiled)
        reasons.append(reason)
    note = blank_note(plan, mesh[0] * mesh[1], config.parallel.micro_batch_tokens)
    return reasons + ([note] if note else [])


def made_with(config: PretrainConfig, processes: Processes) -> dict[str, Any]:
    """Returns what a run with checkpoints was made with: `micro_batch_tokens` where the layout is
    the same now, `compile` where the device is; nothing of a new run."""
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
        if machine["device_type"] == processes.device.type:
            found["compile"] = then["compile"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}  # the files of a start are a courtesy: without them it is chosen again
    return found


def pick_micro_batch(
    config: PretrainConfig,
    plan: StagePlan,
    machine: Machine,
    sizes: Sizes,
    before: dict[str, Any],
) -> str:
    """Sets `micro_batch_tokens` of a given layout, and returns the reason."""
    need = need_of(config, plan)
    kept = before.get("micro_batch_tokens")
    if isinstance(kept, int) and kept >= max(need.seq_lens):
        parallel = replace(config.parallel, micro_batch_tokens=kept)
        if fit(replace(need, parallel=parallel), sizes, machine).problem is None:
            config.parallel = parallel
            return f"parallel.micro_batch_tokens=auto keeps {kept}, with which this run was made."
    best = fit(need, sizes, machine)
    if best.memory is None:
        raise InputError(f"{best.problem}.")
    tokens = best.parallel.micro_batch_tokens
    config.parallel = replace(config.parallel, micro_batch_tokens=tokens)
    if best.problem is not None:
        return (
            f"warning: parallel.micro_batch_tokens=auto takes {tokens}, the smallest, though by "
            f"the plan it {best.problem}. Take more processes, parallel=auto or "
            "parallel.activation_checkpointing=full."
        )
    return (
        f"parallel.micro_batch_tokens=auto takes {tokens}: planned {best.memory.total / GIB:.2f} "
        f"GiB of {machine.memory / GIB:.2f} per process."
    )


def need_of(config: PretrainConfig, plan: StagePlan) -> Need:
    """Returns what the run asks of a layout."""
    return Need(
        config.model,
        config.precision,
        config.optim.name,
        config.parallel,
        tuple(stage.seq_len for stage in plan.stages),
        plan,
    )


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
    need = need_of(config, plan)
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
