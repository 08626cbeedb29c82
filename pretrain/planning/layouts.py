"""Ranks the layouts that fit into memory, for `parallel=auto` and `python -m pretrain memory`.

Layouts are ordered by `cost`. Plain data parallelism gathers no weights, HSDP gathers them within a
node, and FSDP across all nodes. Tensor and context parallelism communicate in every layer, so they
are used as little as possible, and only within a node. Recomputing whole blocks costs a third of a
step; recomputing only their cheap operations costs little. Blank samples waste their share of a
step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import torch

from conf.errors import InputError
from conf.text import GIB
from data_pipeline.sampling.dealing import blank_share, deals, micro_batch_sizes
from data_pipeline.sampling.recipe import StagePlan
from model.attention.backends import repeats_kv
from model.config import ModelConfig
from pretrain.averages.config import EmaConfig
from pretrain.checks import check_layout, sequence_parts
from pretrain.config import AUTO, OptimConfig, ParallelConfig
from pretrain.fp8_checks import FP8_MULTIPLE, check_fp8_sides
from pretrain.parallel.activation_checkpointing import MODES
from pretrain.planning.memory import Memory, Sizes, Work, parameter_shapes, plan_memory
from pretrain.planning.teacher import TeacherShape, teacher_of, with_teacher

USABLE_FRACTION = 0.95
"""Fraction of the memory to plan with. torch's allocator loses the rest to fragmentation."""
SMALL_TOKENS = 4096
"""Tokens per micro-batch below which matrix products are slower (assumed)."""
LARGE_TOKENS = 32768
"""Tokens per micro-batch above which a GPU gets no faster (assumed)."""
LARGE_TOKENS_ON_CPU = 4096
"""Tokens per micro-batch above which activations no longer fit into a CPU's caches (assumed)."""
MASKED_BACKENDS = (AUTO, "sdpa", "cudnn")
"""Values of `parallel.attention` with which a GPU may need dense masks."""
HALVING_COST = 0.01
"""Share of a step that each halving of the micro-batch loses (assumed).

It is weighed against the share of blank samples."""
COST = {
    "selective": 0.05,
    "full": 0.33,
    "sharded": 0.02,
    "reduced": 0.02,
    "tp": 0.08,
    "cp": 0.05,
    "small": 0.1,
}
"""Shares of a step that a layout loses (assumed, for ranking only).

`selective` and `full` recompute activations. `sharded` gathers weights within a node, and `reduced`
reduces gradients after every micro-batch; both cost twice as much across nodes. `tp` and `cp` apply
per doubling, and `small` applies to small micro-batches.
"""


@dataclass(frozen=True)
class RunRequirements:
    """Properties of a run that every layout must satisfy.

    parallel: the settings of the run; its micro_batch_tokens is kept unless it is auto.
    seq_lens: sequence lengths of all stages.
    plan: the stages; None if the batches of the steps are not known yet.
    activation_ratios: measured ratios to the planned activations, by kind of checkpointing.
    teacher: the teacher of the run's objective, or None.
    averaged: whether the device holds a running average of the weights.
    """

    model: ModelConfig
    precision: str
    optimizer: str
    parallel: ParallelConfig
    seq_lens: tuple[int, ...]
    plan: StagePlan | None = None
    activation_ratios: Mapping[str, float] = field(default_factory=dict)
    teacher: TeacherShape | None = None
    averaged: bool = False


class HasRequirements(Protocol):
    """Any config with these keys, such as that of a run or of `python -m pretrain memory`."""

    model: ModelConfig
    precision: str
    optim: OptimConfig
    parallel: ParallelConfig
    objective: dict[str, Any]
    ema: EmaConfig


def requirements_of(
    config: HasRequirements, plan: StagePlan | None, seq_lens: tuple[int, ...] = ()
) -> RunRequirements:
    """Returns the requirements of a config. seq_lens: sequence lengths, if there is no plan."""
    if plan is not None:
        seq_lens = tuple(stage.seq_len for stage in plan.own_stages)
    return RunRequirements(
        config.model,
        config.precision,
        config.optim.name,
        config.parallel,
        seq_lens,
        plan,
        teacher=teacher_of(config.objective),
        averaged=config.ema.on_device,
    )


@dataclass(frozen=True)
class Machine:
    """The processes of a run. memory_bytes: memory that each process can use."""

    world_size: int
    ranks_per_node: int
    memory_bytes: int
    device: str = "cuda"


@dataclass(frozen=True)
class LayoutCandidate:
    """A layout with the best micro-batch and the least recomputation that fit into memory.

    problem: why not even its smallest variant fits, or None if one fits.
    blank: fraction of the computation that is spent on blank samples.
    """

    name: str
    parallel: ParallelConfig
    memory: Memory | None = None
    problem: str | None = None
    blank: float = 0.0


def candidates(requirements: RunRequirements, machine: Machine) -> list[LayoutCandidate]:
    """Returns all layouts: first those that fit, then the others, each from best to worst."""
    shapes = parameter_shapes(requirements.model)
    modes = MODES[MODES.index(requirements.parallel.activation_checkpointing) :]
    found = [
        _candidate(name, sizes, requirements, machine, shapes, modes)
        for name, sizes in layouts(machine)
    ]

    # The sort is stable: layouts of equal cost stay in the order of `layouts`.
    return sorted(
        found, key=lambda one: (one.problem is not None, cost(one.parallel, machine) + one.blank)
    )


def fit(requirements: RunRequirements, sizes: Sizes, machine: Machine) -> LayoutCandidate:
    """Returns the layout of these sizes with its best micro-batch and the run's recomputation."""
    modes = (requirements.parallel.activation_checkpointing,)
    return _candidate(
        "the layout", sizes, requirements, machine, parameter_shapes(requirements.model), modes
    )


def cost(parallel: ParallelConfig, machine: Machine) -> float:
    """Returns the share of a step that a layout loses, for ranking (see COST)."""
    shards = parallel.dp_shard * parallel.cp
    over_nodes = shards * parallel.tp > machine.ranks_per_node
    sharded = (1 + over_nodes) * COST["sharded"] if shards > 1 else 0.0
    if parallel.sharded_accumulation is True:
        sharded += (1 + over_nodes) * COST["reduced"]
    tokens = parallel.micro_batch_tokens  # still `auto` in impossible layouts
    small = COST["small"] * (tokens != AUTO and tokens // parallel.cp < SMALL_TOKENS)
    split = COST["tp"] * math.log2(parallel.tp) + COST["cp"] * math.log2(parallel.cp)
    return COST.get(parallel.activation_checkpointing, 0.0) + sharded + small + split


def choose(requirements: RunRequirements, machine: Machine) -> LayoutCandidate:
    """Returns the best layout. Raises InputError if none fits."""
    found = candidates(requirements, machine)
    if found[0].problem is None:
        return found[0]
    closest = min(
        (candidate for candidate in found if candidate.memory is not None),
        key=lambda candidate: candidate.memory.total if candidate.memory else 0,
        default=None,
    )
    if closest is None:
        raise InputError(
            f"parallel=auto: no layout is possible with {machine.world_size} processes. "
            f"{found[0].name}, for example: {found[0].problem}."
        )
    raise InputError(
        f"parallel=auto: no layout fits into memory. The smallest, {closest.name}, "
        f"{closest.problem}. Use more processes, shorter sequences or a smaller model."
    )


def layouts(machine: Machine) -> Iterator[tuple[str, Sizes]]:
    """Yields the name and the sizes of each layout to consider."""
    world, node = machine.world_size, math.gcd(machine.world_size, machine.ranks_per_node)
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


def _candidate(
    name: str,
    sizes: Sizes,
    requirements: RunRequirements,
    machine: Machine,
    shapes: dict[str, torch.Size],
    modes: Sequence[str],
) -> LayoutCandidate:
    parallel = replace(requirements.parallel, **sizes._asdict())
    try:
        check_layout(parallel, requirements.model, machine.world_size)
        if requirements.teacher is not None and requirements.teacher.network is not None:
            check_layout(parallel, requirements.teacher.network, machine.world_size)
        tokens = micro_batches(requirements, sizes, machine)
    except InputError as error:
        return LayoutCandidate(name, parallel, problem=str(error).rstrip("."))
    last: LayoutCandidate | None = None
    for mode in modes:
        fitting: list[LayoutCandidate] = []
        for count, sharded in product(tokens, accumulations(requirements.parallel, sizes)):
            parallel = replace(
                parallel,
                activation_checkpointing=mode,
                micro_batch_tokens=count,
                sharded_accumulation=sharded,
            )
            memory = _plan_memory(requirements, sizes, machine, parallel, shapes)
            last = LayoutCandidate(name, parallel, memory, blank=_blank(requirements, sizes, count))
            if memory.total <= USABLE_FRACTION * machine.memory_bytes:
                fitting.append(last)
        if fitting:
            return min(fitting, key=lambda one: _micro_batch_cost(one, machine))
    assert last is not None
    assert last.memory is not None
    largest = sorted(vars(last.memory).items(), key=lambda part: -part[1])[:2]
    parts = " and ".join(f"{size / GIB:.1f} for {part}" for part, size in largest)
    problem = (
        f"needs {last.memory.total / GIB:.1f} GiB for micro-batches of "
        f"{last.parallel.micro_batch_tokens} tokens with "
        f"activation_checkpointing={last.parallel.activation_checkpointing} ({parts}), but only "
        f"{USABLE_FRACTION * machine.memory_bytes / GIB:.1f} GiB ({USABLE_FRACTION:.0%} of "
        f"{machine.memory_bytes / GIB:.1f}) are usable"
    )
    return replace(last, problem=problem)


def accumulations(parallel: ParallelConfig, sizes: Sizes) -> tuple[bool, ...]:
    """Returns the candidates for `sharded_accumulation`, the faster one first."""
    if parallel.sharded_accumulation != AUTO:
        return (parallel.sharded_accumulation,)
    return (False, True) if sizes.dp_shard * sizes.cp > 1 else (False,)


def micro_batches(requirements: RunRequirements, sizes: Sizes, machine: Machine) -> list[int]:
    """Returns candidate micro-batch sizes in tokens, largest first.

    Raises InputError if sequences cannot be split over the layout, or if a rank's matrices do not
    have the sizes that fp8 needs.
    """
    pieces = sequence_parts(sizes.cp, sizes.tp)
    for seq_len in requirements.seq_lens:
        if seq_len % pieces:
            raise InputError(
                f"sequences of {seq_len} tokens cannot be split into {pieces} equal parts."
            )
    longest, ranks = max(requirements.seq_lens), sizes.dp_replicate * sizes.dp_shard
    large = LARGE_TOKENS if machine.device == "cuda" else LARGE_TOKENS_ON_CPU
    most = max(1, large * sizes.cp // longest)
    if requirements.parallel.micro_batch_tokens != AUTO:
        counts = [requirements.parallel.micro_batch_tokens]
    elif requirements.plan is None:
        counts = [longest << power for power in reversed(range(most.bit_length()))]
    else:
        # Of the sizes with the same micro-batches in all steps, the smallest is enough.
        dealt = {_largest(requirements.plan, ranks, n * longest) for n in range(1, most + 1)}
        counts = sorted({-(-tokens // longest) * longest for tokens in dealt}, reverse=True)
    if not requirements.precision.startswith("fp8"):
        return counts
    check_fp8_sides(requirements.precision, requirements.model, sizes.tp, sizes.cp, None)
    fitting = [n for n in counts if _multiplies_fp8(requirements, sizes, ranks, n)]
    if not fitting:
        check_fp8_sides(requirements.precision, requirements.model, sizes.tp, sizes.cp, counts[-1])
    return fitting or counts


def _largest(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> int:
    return max(micro_batch_sizes(plan, ranks, micro_batch_tokens).values())


def _multiplies_fp8(
    requirements: RunRequirements, sizes: Sizes, ranks: int, micro_batch_tokens: int
) -> bool:
    """Returns whether the token counts of all micro-batches are sizes that fp8 supports."""
    tokens = [micro_batch_tokens]
    if requirements.plan is not None:
        tokens = list(micro_batch_sizes(requirements.plan, ranks, micro_batch_tokens).values())
    return all(count % (FP8_MULTIPLE * sizes.cp) == 0 for count in tokens)


def _blank(requirements: RunRequirements, sizes: Sizes, micro_batch_tokens: int) -> float:
    if requirements.plan is None:
        return 0.0
    return blank_share(requirements.plan, sizes.dp_replicate * sizes.dp_shard, micro_batch_tokens)


def _micro_batch_cost(candidate: LayoutCandidate, machine: Machine) -> float:
    """Returns the share of a step lost to the layout, blank samples and small micro-batches."""
    parallel = candidate.parallel
    return (
        cost(parallel, machine)
        + candidate.blank
        - HALVING_COST * math.log2(parallel.micro_batch_tokens / parallel.cp)
    )


def spare_bytes(
    config: HasRequirements, plan: StagePlan, sizes: Mapping[str, int], machine: Machine
) -> float:
    """Returns the bytes of a GPU that a plan without attention masks leaves unused.

    Args:
        config: The run, with its micro-batch.
        plan: Its stages.
        sizes: Size of each dimension of the mesh.
        machine: The processes.
    """
    requirements = requirements_of(config, plan)
    parallel = replace(requirements.parallel, attention="flash")
    fitted = fit(replace(requirements, parallel=parallel), Sizes(**sizes), machine)
    assert fitted.memory is not None
    return USABLE_FRACTION * machine.memory_bytes - fitted.memory.total


def _plan_memory(
    requirements: RunRequirements,
    sizes: Sizes,
    machine: Machine,
    parallel: ParallelConfig,
    shapes: dict[str, torch.Size],
) -> Memory:
    """Plans memory for the longest sequences, which need the most for masks, keys and values."""
    ranks, micro_batch_tokens = sizes.dp_replicate * sizes.dp_shard, parallel.micro_batch_tokens
    dealt = (
        deals(requirements.plan, ranks, micro_batch_tokens) if requirements.plan is not None else ()
    )
    work = Work(
        requirements.precision,
        micro_batch_tokens,
        max(requirements.seq_lens),
        accumulates=requirements.plan is None or any(deal.micro_batches > 1 for _, deal in dealt),
        sharded_accumulation=parallel.sharded_accumulation,
        checkpointing=parallel.activation_checkpointing,
        reshard=parallel.reshards_after_forward(sizes.dp_shard * sizes.cp),
        dense_mask=machine.device == "cpu" or parallel.attention in MASKED_BACKENDS,
        repeated_kv=repeats_kv(
            "varlen" if parallel.attention == AUTO else parallel.attention, machine.device
        ),
        device=machine.device,
    )
    planned = plan_memory(
        requirements.model, shapes, sizes, work, requirements.optimizer, requirements.averaged
    )
    mode = parallel.activation_checkpointing
    planned = planned.with_activations(requirements.activation_ratios.get(mode, 1.0))
    if requirements.teacher is None:
        return planned
    return with_teacher(planned, requirements.teacher, requirements.model, sizes, work)
