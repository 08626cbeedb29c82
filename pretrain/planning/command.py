"""The command `python -m pretrain memory`, which lists the layouts that fit into memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING
from rich.table import Table

from conf.errors import InputError, one_of
from conf.text import GIB, table_console
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from model.config import ModelConfig
from pretrain.averages.config import EmaConfig
from pretrain.config import PRECISION_CHOICES, OptimConfig, ParallelConfig
from pretrain.planning.fake_ranks import fake_ranks, state_bytes
from pretrain.planning.layouts import (
    USABLE_FRACTION,
    LayoutCandidate,
    Machine,
    candidates,
    requirements_of,
)
from pretrain.planning.memory import CONFIDENCE, shown_parts


@dataclass
class MemoryConfig:
    """Configuration of the command.

    world_size: number of processes.
    node: number of processes per machine.
    gpu_memory_gib: memory of each process in GiB.
    seq_len: tokens per sequence; null for the longest that the model supports.
    global_batch_tokens: tokens per step; null for any number, with several micro-batches per step.
    init_from: a Hugging Face folder whose model is used if model= is not given.
    show: largest number of layouts in the table.
    build: whether to shard the model for each layout of the table on a fake process group, to count
        its weights, gradients and optimizer states; false shows the planned bytes.
    parallel: settings that every layout shares. The sizes of the mesh are searched, and so is the
        micro-batch if it is auto.
    objective: the loss to minimize, whose teacher needs memory too if it has one.
    precision: precision of the run; auto means bf16 here, which GPUs support.
    ema: the running average of the weights that the run keeps.
    """

    model: ModelConfig = MISSING
    init_from: str | None = None
    optim: OptimConfig = MISSING
    parallel: ParallelConfig = MISSING
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "cross_entropy"})
    precision: str = "auto"
    ema: EmaConfig = field(default_factory=EmaConfig)
    world_size: int = 8
    node: int = 8
    gpu_memory_gib: float = 80.0
    seq_len: int | None = None
    global_batch_tokens: int | None = None
    show: int = 6
    build: bool = True

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISION_CHOICES)
        if self.precision == "auto":
            self.precision = "bf16"
        for key in ("world_size", "node", "gpu_memory_gib", "show"):
            if getattr(self, key) <= 0:
                raise InputError(f"{key}={getattr(self, key)}: expected more than 0.")
        longest = self.model.max_seq_len
        if self.seq_len is not None and not 1 <= self.seq_len <= longest:
            raise InputError(
                f"seq_len={self.seq_len}: expected 1 to {longest} (model.max_seq_len)."
            )


def memory(config: MemoryConfig) -> None:
    """Prints a table of the layouts that fit, best first, and why the others do not fit."""
    machine = Machine(config.world_size, config.node, int(config.gpu_memory_gib * GIB))
    seq_len, batch = config.seq_len or config.model.max_seq_len, config.global_batch_tokens
    plan = None
    if batch is not None:
        if batch < 1 or batch % seq_len:
            raise InputError(
                f"global_batch_tokens={batch}: expected a multiple of seq_len={seq_len}."
            )
        plan = StagePlan(RecipeConfig("one", batch, {"one": StageConfig(seq_len, batch)}), {"": 1})
    found = candidates(requirements_of(config, plan, (seq_len,)), machine)
    fitting = [option for option in found if option.problem is None]
    console = table_console()
    if fitting:
        console.print(_table(config, seq_len, fitting[: config.show]))
    if fitting[config.show :]:
        names = ", ".join(option.name for option in fitting[config.show :])
        console.print(f"also fitting: {names}", highlight=False, soft_wrap=True)
    for option in found:
        if option.problem is not None:
            console.print(f"{option.name}: {option.problem}", highlight=False, soft_wrap=True)


def _table(config: MemoryConfig, seq_len: int, fitting: list[LayoutCandidate]) -> Table:
    table = Table(
        title=f"{config.model.name} on {config.world_size} x {config.gpu_memory_gib:g} GiB, "
        f"{config.precision}, sequences of {seq_len}: GiB per rank",
        caption=f"planned against {USABLE_FRACTION:.0%} of GPU memory",
        title_justify="left",
        caption_justify="left",
    )
    shown = shown_parts(option.memory for option in fitting if option.memory is not None)
    for name in ("", "layout", "micro-batch", "blank", "recomputed", *shown, "total"):
        is_text = name in ("layout", "recomputed")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    table.add_row(
        *("", "", "tokens", "exact", ""),
        *(CONFIDENCE[name] for name in shown),
        "",
        style="dim",
        end_section=True,
    )
    with fake_ranks(config.world_size) if config.build else nullcontext():
        for place, option in enumerate(fitting, 1):
            assert option.memory is not None
            parts = asdict(option.memory)
            if config.build:
                counted = state_bytes(config.model, option.parallel, config.precision, config.optim)
                parts |= {k: v for k, v in asdict(counted).items() if k in parts}
                parts["weights"] += counted.weights if config.ema.on_device else 0
            table.add_row(
                str(place),
                option.name,
                str(option.parallel.micro_batch_tokens),
                f"{option.blank:.1%}",
                option.parallel.activation_checkpointing,
                *(f"{parts[name] / GIB:.2f}" for name in shown),
                f"{sum(parts.values()) / GIB:.1f}",
            )
    return table
