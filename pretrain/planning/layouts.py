"""Which layouts fit, best first: for `parallel=auto` and `python -m pretrain memory`.

The order is that of `cost`: copies of the model (plain data parallel) have nothing to gather; HSDP
gathers weights inside a node, FSDP over all of them; tensor and context parallel talk in every
layer, so there is as little of them as possible, and inside a node; recomputing a block takes a
third of a step, recomputing the cheap part of it little; blank samples take their share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from conf.errors import InputError
from conf.text import GIB
from data_pipeline.sampling.dealing import blank_share, deals, micro_batch_sizes
from data_pipeline.sampling.recipe import StagePlan
from model.config import ModelConfig
from pretrain.checks import FP8_MULTIPLE, check_fp8_sides, check_layout, sequence_parts
from pretrain.config import AUTO, ParallelConfig
from pretrain.parallel.activation_checkpointing import MODES
from pretrain.planning.memory import Memory, Sizes, Work, parameter_shapes, plan_memory

USABLE = 0.95
"""Of the memory that is there; the rest is lost between blocks of torch's allocator."""
SMALL = 4096
"""Tokens of a micro-batch below which matrix products are slower (assumed)."""
LARGE = 32768
"""Tokens of a micro-batch on a GPU above which nothing gets faster (assumed)."""
LARGE_ON_CPU = 4096
"""The same on a CPU: larger ones no longer fit into its caches (assumed)."""
HALVED = 0.01
"""Share of a step that each halving of the largest micro-batch loses (assumed): what it is weighed
with against blank samples."""


COST = {"selective": 0.05, "full": 0.33, "sharded": 0.02, "tp": 0.08, "cp": 0.05, "small": 0.1}
"""Shares of a step that a layout loses (assumed, to rank by): by recomputation; by gathering
weights inside a node, twice that over nodes; by each doubling of tp and cp; by small batches."""


@dataclass(frozen=True)
class Need:
    """What a run asks of every layout.

    parallel: a micro_batch_tokens that is given is kept.
    seq_lens: of all stages; plan: of all steps, None where their batches are not known yet.
    """

    model: ModelConfig
    precision: str
    optimizer: str
    parallel: ParallelConfig
    seq_lens: tuple[int, ...]
    plan: StagePlan | None = None


@dataclass(frozen=True)
class Machine:
    """memory: bytes that each process can have; node: processes of one node."""

    world_size: int
    node: int
    memory: int
    device: str = "cuda"


@dataclass(frozen=True)
class Option:
    """A layout with the best micro-batch and the least recomputation that fit, or, with `problem`,
    the smallest of them that does not and why. blank: share of what is computed that is blank
    samples."""

    name: str
    parallel: ParallelConfig
    memory: Memory | None = None
    problem: str | None = None
    blank: float = 0.0


def options(need: Need, machine: Machine) -> list[Option]:
    """All layouts, those that fit first, best first."""
    shapes = parameter_shapes(need.model)
    modes = MODES[MODES.index(need.parallel.activation_checkpointing) :]
    found = [_option(name, sizes, need, machine, shapes, modes) for name, sizes in layouts(machine)]

    # Stable: layouts of one cost stay in the order of `layouts`.
    return sorted(found, key=lambda o: (o.problem is not None, cost(o.parallel, machine) + o.blank))


def fit(need: Need, sizes: Sizes, machine: Machine) -> Option:
    """Returns the best micro-batch of one layout with the recomputation that is given, or with
    `problem` the smallest."""
    modes = (need.parallel.activation_checkpointing,)
    return _option("the layout", sizes, need, machine, parameter_shapes(need.model), modes)


def cost(parallel: ParallelConfig, machine: Machine) -> float:
    """Share of a step that is lost, to rank by (COST)."""
    shards = parallel.dp_shard * parallel.cp
    over_nodes = shards * parallel.tp > machine.node
    sharded = COST["sharded"] * (1 + over_nodes) if shards > 1 else 0.0
    tokens = parallel.micro_batch_tokens  # `auto` in layouts that cannot be
    small = COST["small"] * (tokens != AUTO and tokens // parallel.cp < SMALL)
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
    modes: Sequence[str],
) -> Option:
    parallel = replace(need.parallel, **sizes._asdict())
    try:
        check_layout(parallel, need.model, machine.world_size)
        tokens = micro_batches(need, sizes, machine)
    except InputError as error:
        return Option(name, parallel, problem=str(error).rstrip("."))
    last: Option | None = None
    for mode in modes:
        fitting: list[Option] = []
        for count in tokens:
            memory = _plan(need, sizes, machine, mode, count, shapes)
            parallel = replace(parallel, activation_checkpointing=mode, micro_batch_tokens=count)
            last = Option(name, parallel, memory, blank=_blank(need, sizes, count))
            if memory.total <= USABLE * machine.memory:
                fitting.append(last)
        if fitting:
            return min(fitting, key=lambda option: _micro_batch_cost(option, machine))
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


def micro_batches(need: Need, sizes: Sizes, machine: Machine) -> list[int]:
    """Tokens of a micro-batch that come into question, the largest first; raises InputError where
    sequences cannot be split over the layout, or fp8 cannot multiply what each rank has."""
    pieces = sequence_parts(sizes.cp, sizes.tp)
    for seq_len in need.seq_lens:
        if seq_len % pieces:
            raise InputError(f"sequences of {seq_len} tokens do not split into {pieces} pieces.")
    longest, ranks = max(need.seq_lens), sizes.dp_replicate * sizes.dp_shard
    large = LARGE if machine.device == "cuda" else LARGE_ON_CPU
    most = max(1, large * sizes.cp // longest)
    if need.parallel.micro_batch_tokens != AUTO:
        counts = [need.parallel.micro_batch_tokens]
    elif need.plan is None:
        counts = [longest << power for power in reversed(range(most.bit_length()))]
    else:
        # Of those that deal all steps alike, the smallest.
        dealt = {_largest(need.plan, ranks, n * longest) for n in range(1, most + 1)}
        counts = sorted({-(-tokens // longest) * longest for tokens in dealt}, reverse=True)
    if not need.precision.startswith("fp8"):
        return counts
    check_fp8_sides(need.precision, need.model, sizes.tp, sizes.cp, None)
    fitting = [n for n in counts if _multiplies_fp8(need, sizes, ranks, n)]
    if not fitting:
        check_fp8_sides(need.precision, need.model, sizes.tp, sizes.cp, counts[-1])
    return fitting or counts


def _largest(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> int:
    return max(micro_batch_sizes(plan, ranks, micro_batch_tokens).values())


def _multiplies_fp8(need: Need, sizes: Sizes, ranks: int, micro_batch_tokens: int) -> bool:
    """Whether the tokens of all micro-batches are sides that fp8 multiplies."""
    tokens = [micro_batch_tokens]
    if need.plan is not None:
        tokens = list(micro_batch_sizes(need.plan, ranks, micro_batch_tokens).values())
    return all(count % (FP8_MULTIPLE * sizes.cp) == 0 for count in tokens)


def _blank(need: Need, sizes: Sizes, micro_batch_tokens: int) -> float:
    if need.plan is None:
        return 0.0
    return blank_share(need.plan, sizes.dp_replicate * sizes.dp_shard, micro_batch_tokens)


def _micro_batch_cost(option: Option, machine: Machine) -> float:
    """Share of a step that is lost by blank samples and by small micro-batches."""
    parallel = option.parallel
    return (
        cost(parallel, machine)
        + option.blank
        - HALVED * math.log2(parallel.micro_batch_tokens / parallel.cp)
    )


def _plan(
    need: Need,
    sizes: Sizes,
    machine: Machine,
    mode: str,
    micro_batch_tokens: int,
    shapes: dict[str, torch.Size],
) -> Memory:
    """At the stage that needs most: of longest sequences, whose masks and halos are largest."""
    ranks = sizes.dp_replicate * sizes.dp_shard
    dealt = deals(need.plan, ranks, micro_batch_tokens) if need.plan is not None else ()
    work = Work(
        need.precision,
        micro_batch_tokens,
        max(need.seq_lens),
        accumulates=need.plan is None or any(deal.micro_batches > 1 for _, deal in dealt),
        checkpointing=mode,
        reshard=need.parallel.reshards_after_forward(sizes.dp_shard * sizes.cp),
        dense_mask=machine.device == "cpu" or need.parallel.attention == "sdpa",
        device=machine.device,
    )
    return plan_memory(need.model, shapes, sizes, work, need.optimizer)
