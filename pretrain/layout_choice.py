"""Which layouts fit, best first: for `parallel=auto` and `python -m pretrain memory`.

The order is that of `cost`: copies of the model (plain data parallel) have nothing to gather; HSDP
gathers weights inside a node, FSDP over all of them; tensor and context parallel talk in every
layer, so there is as little of them as possible, and inside a node; recomputing a block takes a
third of a step, recomputing the cheap part of it little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from conf.errors import InputError
from model.config import ModelConfig
from pretrain.activation_checkpointing import MODES
from pretrain.checks import check_fp8_sides, check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.memory import Memory, Sizes, Work, parameter_shapes, plan_memory

GIB = 1 << 30
USABLE = 0.95
"""Of the memory that is there; the rest is lost between blocks of torch's allocator."""
SMALL = 4096
"""Tokens of a micro-batch below which matrix products are slower (assumed)."""
LARGE = 32768
"""Tokens of a micro-batch above which nothing gets faster (assumed)."""


COST = {"selective": 0.05, "full": 0.33, "sharded": 0.02, "tp": 0.08, "cp": 0.05, "small": 0.1}
"""Shares of a step that a layout loses (assumed, to rank by): by recomputation; by gathering
weights inside a node, twice that over nodes; by each doubling of tp and cp; by small batches."""


@dataclass(frozen=True)
class Need:
    """What a run asks of every layout.

    seq_lens: of all stages; global_batch_tokens: of a step, None where it is not yet known.
    attention: `parallel.attention`.
    """

    model: ModelConfig
    precision: str
    optimizer: str
    parallel: ParallelConfig
    seq_lens: tuple[int, ...]
    global_batch_tokens: int | None = None


@dataclass(frozen=True)
class Machine:
    """memory: bytes that each process can have; node: processes of one node."""

    world_size: int
    node: int
    memory: int
    device: str = "cuda"


@dataclass(frozen=True)
class Option:
    """A layout with the largest micro-batch and the least recomputation that fit, or, with
    `problem`, the smallest of them that does not and why."""

    name: str
    parallel: ParallelConfig
    memory: Memory | None = None
    problem: str | None = None


def options(need: Need, machine: Machine) -> list[Option]:
    """All layouts, those that fit first, best first."""
    shapes = parameter_shapes(need.model)
    found = [_option(name, sizes, need, machine, shapes) for name, sizes in layouts(machine)]

    # Stable: layouts of one cost stay in the order of `layouts`.
    return sorted(found, key=lambda o: (o.problem is not None, cost(o.parallel, machine)))


def cost(parallel: ParallelConfig, machine: Machine) -> float:
    """Share of a step that is lost, to rank by (COST)."""
    shards = parallel.dp_shard * parallel.cp
    over_nodes = shards * parallel.tp > machine.node
    sharded = COST["sharded"] * (1 + over_nodes) if shards > 1 else 0.0
    small = COST["small"] * (parallel.micro_batch_tokens // parallel.cp < SMALL)
    split = COST["tp"] * math.log2(parallel.tp) + COST["cp"] * math.log2(parallel.cp)
    return COST.get(parallel.activation_checkpointing, 0.0) + sharded + small + split


def choose(need: Need, machine: Machine) -> Option:
    """The best layout; raises InputError where none fits."""
    found = options(need, machine)
    if found[0].problem is None:
        return found[0]
    closest = min(
        (option for option in found if option.memory is not None),
        key=lambda option: option.memory.total if option.memory else 0,
        default=None,
    )
    if closest is None:
        raise InputError(
            f"parallel=auto finds no layout for {machine.world_size} processes: "
            f"{found[0].name}: {found[0].problem}."
        )
    raise InputError(
        f"parallel=auto finds no layout that fits: the smallest, {closest.name}, "
        f"{closest.problem}; take more processes, shorter sequences or a smaller model."
    )


def optimizer_name(config: OptimConfig) -> str:
    """As `pretrain.memory` calls it."""
    return getattr(config, "name", "adamw")


def layouts(machine: Machine) -> Iterator[tuple[str, Sizes]]:
    """All layouts that are looked at, by name."""
    world, node = machine.world_size, math.gcd(machine.world_size, machine.node)
    yield "replicate" if world > 1 else "one process", Sizes(dp_replicate=world)
    widths = [width for width in (1, 2, 4, 8, 16) if node % width == 0]
    products = [(tp, cp) for tp in widths for cp in widths if tp * cp in widths]
    for tp, cp in sorted(products, key=lambda pair: (pair[0] * pair[1], pair[1])):
        inner = "".join(f" x {k}{size}" for k, size in (("TP", tp), ("CP", cp)) if size > 1)
        within, shard = node // (tp * cp), world // (tp * cp)
        if world > node and within * cp > 1:
            replicate = world // node
            yield f"HSDP {replicate}x{within}{inner}", Sizes(replicate, within, cp, tp)
        if world > 1:
            yield f"FSDP {shard}{inner}", Sizes(1, shard, cp, tp)


def _option(
    name: str,
    sizes: Sizes,
    need: Need,
    machine: Machine,
    shapes: dict[str, torch.Size],
) -> Option:
    parallel = replace(need.parallel, **sizes._asdict())
    try:
        check_layout(parallel, need.model, machine.world_size)
        tokens = micro_batches(need, sizes)
        if need.precision.startswith("fp8"):
            check_fp8_sides(need.precision, need.model, sizes.tp, sizes.cp, tokens[-1])
    except InputError as error:
        return Option(name, parallel, problem=str(error).rstrip("."))
    last: Option | None = None
    for mode in MODES[MODES.index(need.parallel.activation_checkpointing) :]:
        for count in tokens:
            memory = _plan(need, sizes, machine, mode, count, shapes)
            parallel = replace(parallel, activation_checkpointing=mode, micro_batch_tokens=count)
            if memory.total <= USABLE * machine.memory:
                return Option(name, parallel, memory)
            last = Option(name, parallel, memory)
    assert last is not None
    assert last.memory is not None
    largest = sorted(vars(last.memory).items(), key=lambda part: -part[1])[:2]
    parts = " and ".join(f"{size / GIB:.1f} for {part}" for part, size in largest)
    problem = (
        f"needs {last.memory.total / GIB:.1f} GiB for micro-batches of "
        f"{last.parallel.micro_batch_tokens} tokens with "
        f"activation_checkpointing={last.parallel.activation_checkpointing} ({parts}), and "
        f"{USABLE * machine.memory / GIB:.1f} GiB ({USABLE:.0%} of {machine.memory / GIB:.1f}) "
        "are usable"
    )
    return replace(last, problem=problem)


def micro_batches(need: Need, sizes: Sizes) -> list[int]:
    """Tokens of a micro-batch that come into question, the largest first; raises InputError where
    the batch of a step cannot be dealt out."""
    unit = math.lcm(*need.seq_lens)
    ranks = sizes.dp_replicate * sizes.dp_shard
    pieces = sizes.tp if sizes.cp == 1 else 2 * sizes.cp * sizes.tp
    for seq_len in need.seq_lens:
        if seq_len % pieces:
            raise InputError(f"sequences of {seq_len} tokens do not split into {pieces} pieces.")
    most = max(1, LARGE * sizes.cp // unit)
    if need.global_batch_tokens is None:
        return [unit << power for power in reversed(range(most.bit_length()))]
    sequences, rest = divmod(need.global_batch_tokens, unit * ranks)
    if rest or not sequences:
        raise InputError(
            f"a step's {need.global_batch_tokens} tokens are "
            f"{need.global_batch_tokens / unit:g} sequences of {unit}, which cannot be dealt "
            f"evenly to {ranks} data-parallel ranks."
        )
    counts = [n for n in range(min(most, sequences), 0, -1) if sequences % n == 0]
    return [unit * count for count in counts]


def _plan(
    need: Need,
    sizes: Sizes,
    machine: Machine,
    mode: str,
    micro_batch_tokens: int,
    shapes: dict[str, torch.Size],
) -> Memory:
    """At the stage that needs most: of longest sequences, whose masks and halos are largest."""
    once = micro_batch_tokens * sizes.dp_replicate * sizes.dp_shard
    work = Work(
        need.precision,
        micro_batch_tokens,
        max(need.seq_lens),
        accumulates=need.global_batch_tokens != once,
        checkpointing=mode,
        reshard=need.parallel.gathers_twice(sizes.dp_shard * sizes.cp),
        dense_mask=machine.device == "cpu" or need.parallel.attention == "sdpa",
        device=machine.device,
    )
    return plan_memory(need.model, shapes, sizes, work, need.optimizer)
