"""From a config to a plan: every layout with its memory and time, the best of them in full."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.errors import InputError, one_of
from conf.text import GIB
from data_pipeline.sampling.dealing import Deal, blank_note
from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from data_pipeline.store.corpus import open_corpus
from launch.plan.cluster import ClusterConfig
from launch.plan.speed import Step, StepTime, model_flops_utilization, step_time
from model.config import ModelConfig
from model.flops import flops_per_token, parameters
from pretrain.checkpoints.interval import best_interval
from pretrain.checks import check_batches
from pretrain.config import PRECISION_CHOICES, OptimConfig, ParallelConfig
from pretrain.planning.layouts import Machine, Need, Option, options
from pretrain.planning.memory import optimizer_bytes, parameter_shapes
from pretrain.preflight import train_tokens
from pretrain.recipe import TrainingRecipeConfig, training_config

DAY = 86_400
GOOD_EPOCHS = 4.0
"""Repeating text up to so often costs little (arXiv 2305.16264)."""
SMALL_MICRO_BATCH = 4096
"""Tokens below which a GPU's matrix products are too small to be fast (assumed)."""
RESTART_SECONDS = 300.0
"""From a failure to the next step: scheduler, imports, loading (assumed)."""
SAME = 1.01
"""Ratio of two times below which a plan does not tell them apart."""
MEASURED_SPREAD = 0.05
"""Of a plan that rests on a measurement."""


@dataclass
class PlanConfig:
    """The run's own keys, and where it is to run. Behind `--` may stand the command of a training
    instead, as for `python -m launch slurm`: model, recipe and all else are then that run's.

    init_from: a Hugging Face folder, whose model is taken where no model= is given.
    cluster: a file of conf/cluster by its name, or any by its path. nodes: null for the file's.
    precision: of the matrix products; auto is bf16 where the cluster's GPUs multiply it, else fp32.
    max_epochs: passes over a source above which it warns.
    data: a tokenized corpus, or null. out: the page to write, or null; overwrite: replaces
        such a page. show: layouts in the table.
    calibration: measured speeds of this GPU, as `python benchmarks/gpu_training.py` writes them, or
        null.
    """

    model: ModelConfig = MISSING
    init_from: str | None = None
    recipe: TrainingRecipeConfig = MISSING
    optim: OptimConfig = MISSING
    parallel: ParallelConfig = MISSING
    cluster: ClusterConfig = MISSING
    nodes: int | None = None
    precision: str = "auto"
    data: str | None = None
    max_epochs: float = GOOD_EPOCHS
    calibration: str | None = None
    out: str | None = None
    overwrite: bool = False
    show: int = 5

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISION_CHOICES)
        if self.nodes is not None:
            self.cluster = replace(self.cluster, nodes=self.nodes)
        if self.show < 1:
            raise InputError(f"show={self.show}, expected at least 1.")
        if self.precision == "auto":
            self.precision = "bf16" if self.cluster.bf16_tflops else "fp32"
        peaks = {"bf16": self.cluster.bf16_tflops}
        peaks |= dict.fromkeys(("fp8", "fp8_rowwise"), self.cluster.fp8_tflops)
        if not peaks.get(self.precision, 1.0):
            other = "bf16" if self.cluster.bf16_tflops else "fp32"
            raise InputError(
                f"precision={self.precision}, but {self.cluster.gpu} does not multiply "
                f"{self.precision.removesuffix('_rowwise')}: take precision={other}."
            )


@dataclass(frozen=True)
class Span:
    """A number as it is at best and as it usually is."""

    low: float
    high: float

    def map(self, change: Any) -> Span:
        """Both ends changed, in order again."""
        ends = sorted((change(self.low), change(self.high)))
        return Span(*ends)


@dataclass(frozen=True)
class StageOutlook:
    """One stage on the best layout. times: of a step, at best and usual."""

    stage: ScheduledStage
    precision: str
    times: tuple[StepTime, StepTime]
    tokens_per_second: Span
    mfu: Span
    days: Span
    flops_per_token: float
    batch_tokens: int
    deal: Deal

    @property
    def scaling_efficiency(self) -> float:
        """Share of a step that is not exposed communication, as it usually is."""
        return self.times[1].compute / self.times[1].total


@dataclass(frozen=True)
class LayoutOutlook:
    """A layout that fits, with all stages."""

    option: Option
    stages: list[StageOutlook]

    @property
    def days(self) -> Span:
        """Of all stages, without failures."""
        return Span(sum(s.days.low for s in self.stages), sum(s.days.high for s in self.stages))


@dataclass(frozen=True)
class Reliability:
    """checkpoint_bytes: of one; save_seconds: written by all nodes at once.

    interval_seconds: between saves, by Young's rule; lost: share of the time that saves and
        failures take; failures: expected in the run.
    """

    checkpoint_bytes: int
    save_seconds: float
    interval_seconds: float
    lost: float
    failures: float


@dataclass(frozen=True)
class Outlook:
    """The whole plan. layouts: that fit, fastest first; refused: the others."""

    config: PlanConfig
    plan: StagePlan
    layouts: list[LayoutOutlook]
    refused: list[Option]
    reliability: Reliability
    epochs: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    measured: str | None = None

    @property
    def best(self) -> LayoutOutlook:
        """The fastest."""
        return self.layouts[0]

    @property
    def days(self) -> Span:
        """Of the best layout, with what saves and failures take."""
        return self.best.days.map(lambda days: days / (1 - self.reliability.lost))

    @property
    def gpu_hours(self) -> Span:
        """Of all GPUs."""
        return self.days.map(lambda days: days * 24 * self.config.cluster.world_size)

    @property
    def energy_kwh(self) -> Span:
        """At the stated power."""
        return self.gpu_hours.map(lambda hours: hours * self.config.cluster.gpu_watts / 1000)

    @property
    def cost(self) -> Span:
        """At the stated prices."""
        cluster = self.config.cluster
        hourly = cluster.gpu_hour_price + cluster.gpu_watts / 1000 * cluster.kwh_price
        return self.gpu_hours.map(lambda hours: hours * hourly)

    @property
    def data_bytes(self) -> int:
        """Of the shards, where every token is read once: two bytes a token, or four."""
        size = 2 if self.config.model.vocab_size <= 1 << 16 else 4
        return self.plan.total_tokens * size


def look_ahead(config: PlanConfig) -> Outlook:
    """The plan of a run; raises InputError where no layout fits."""
    cluster = config.cluster
    plan = StagePlan(config.recipe, source_tokens(config))
    check_batches(plan, config.parallel, config.model.max_seq_len)
    machine = Machine(
        cluster.world_size,
        cluster.gpus_per_node,
        int(cluster.gpu_memory_gib * GIB),
        cluster.device,
    )
    need = Need(
        config.model,
        config.precision,
        config.optim.name,
        config.parallel,
        tuple(stage.seq_len for stage in plan.stages),
        plan,
    )
    found = options(need, machine)
    calibration = Calibration.read(Path(config.calibration)) if config.calibration else None
    shapes = parameter_shapes(config.model)
    state_bytes = optimizer_bytes(shapes, config.optim.name) / sum(
        shape.numel() for shape in shapes.values()
    )
    fitting = []
    for option in found:
        if option.problem is None:
            stages = [
                stage_outlook(config, plan, stage, option, calibration, state_bytes)
                for stage in plan.stages
            ]
            fitting.append(LayoutOutlook(option, stages))
    refused = [option for option in found if option.problem is not None]
    if not fitting:
        closest = min(
            refused, key=lambda o: o.memory.total if o.memory is not None else float("inf")
        )
        raise InputError(
            f"no layout of {config.model.name} fits {cluster.world_size} x {cluster.gpu}: the "
            f"closest, {closest.name}, {closest.problem}; take other nodes, another batch, shorter "
            "sequences or a smaller model."
        )
    fastest = min(layout.days.high for layout in fitting)
    # Stable: what is as fast but for a percent stays in the order of `options`, simplest first.
    fitting.sort(key=lambda layout: int(math.log(layout.days.high / fastest) / math.log(SAME)))
    days = fitting[0].days.high
    taken = epochs(config, plan)
    return Outlook(
        config,
        plan,
        fitting,
        refused,
        reliability(config, days),
        taken,
        list(warnings(config, plan, fitting[0], taken)),
        config.calibration,
    )


def source_tokens(config: PlanConfig) -> dict[str, int]:
    """Tokens of each source: of the corpus, or endless."""
    if config.data is not None:
        return open_corpus(config.data).source_tokens("train")
    return dict(train_tokens(config.recipe, None))


def stage_outlook(
    config: PlanConfig,
    plan: StagePlan,
    stage: ScheduledStage,
    option: Option,
    calibration: Calibration | None,
    state_bytes: float,
) -> StageOutlook:
    """Returns one stage in one layout, at the batch that most of it has.

    state_bytes: of the optimizer per parameter.
    """
    precision = training_config(stage).precision or config.precision
    level = max(
        (level for level in plan.levels if level.stage == stage.index), key=lambda x: x.steps
    )
    step = Step(
        config.model,
        stage.seq_len,
        level.tokens_per_step,
        precision,
        option.parallel,
        state_bytes,
    )
    times = (step_time(step, config.cluster, True), step_time(step, config.cluster, False))
    if calibration is not None:
        times = calibration.apply(step, config.cluster)
    seconds = Span(times[0].total, times[1].total)
    steps = stage.tokens / level.tokens_per_step
    return StageOutlook(
        stage,
        precision,
        times,
        seconds.map(lambda s: level.tokens_per_step / s),
        seconds.map(lambda s: model_flops_utilization(step, config.cluster, s)),
        seconds.map(lambda s: s * steps / DAY),
        flops_per_token(config.model, stage.seq_len),
        level.tokens_per_step,
        step.deal,
    )


def reliability(config: PlanConfig, days: float) -> Reliability:
    """Saves and failures of a run of so many days."""
    cluster = config.cluster
    shapes = parameter_shapes(config.model)
    weights = sum(shape.numel() for shape in shapes.values())
    size = 4 * weights + optimizer_bytes(shapes, config.optim.name)
    if config.model.tie_embeddings:
        size = size * parameters(config.model) // weights
    seconds = size / (cluster.nodes * cluster.storage_gb_s * 1e9)
    mttf = cluster.node_mttf_days * DAY / cluster.nodes
    interval = best_interval(seconds, mttf)
    lost = seconds / (interval + seconds) + (interval / 2 + RESTART_SECONDS) / mttf
    return Reliability(size, seconds, interval, lost, days * DAY / mttf)


def epochs(config: PlanConfig, plan: StagePlan) -> dict[str, float]:
    """How often each source of the corpus is read; empty without one."""
    if config.data is None:
        return {}
    have = source_tokens(config)
    taken = dict.fromkeys(have, 0.0)
    for stage in plan.stages:
        whole = sum(stage.weights.values())
        for source, weight in stage.weights.items():
            taken[source] += stage.tokens * weight / whole
    return {source: tokens / max(1, have[source]) for source, tokens in taken.items()}


def warnings(
    config: PlanConfig, plan: StagePlan, best: LayoutOutlook, taken: dict[str, float]
) -> Any:
    """Sentences on what a user may not have meant."""
    parallel, cluster = best.option.parallel, config.cluster
    each = parallel.micro_batch_tokens // parallel.cp
    if each < SMALL_MICRO_BATCH and cluster.device == "cuda":
        yield (
            f"A GPU forwards {each:,} tokens at a time: below {SMALL_MICRO_BATCH:,} its matrix "
            "products are slower than planned. Take fewer GPUs, a larger batch, or "
            "activation_checkpointing."
        )
    for source, times in taken.items():
        if times > config.max_epochs:
            yield (
                f"Source '{source}' is read {times:.1f} times, above max_epochs="
                f"{config.max_epochs:g}: pretraining will refuse it. Repeating beyond 4 costs "
                "quality (arXiv 2305.16264)."
            )
    window = config.model.sliding_window
    longest = max(stage.seq_len for stage in plan.stages)
    if window is not None and longest <= window:
        yield (
            f"The window of {window:,} is never reached: the longest sequence has {longest:,} "
            "tokens, so attention is full throughout."
        )
    note = blank_note(plan, parallel.dp_replicate * parallel.dp_shard, parallel.micro_batch_tokens)
    if note is not None:
        yield f"In the layout {best.option.name} {note}"
    if best.stages and min(stage.scaling_efficiency for stage in best.stages) < 0.85:
        yield (
            "More than 15% of a step is communication: a larger batch per GPU would use the GPUs "
            "better."
        )


MEASURED = {"model", "seq_len", "precision", "batch_tokens", "tokens_per_second"}


@dataclass(frozen=True)
class Calibration:
    """Measured speeds of this GPU: {"gpu": ..., "runs": [{"model": {the shape's keys},
    "seq_len": ..., "precision": ..., "batch_tokens": ..., "tokens_per_second": ...}]}, of one
    GPU. The nearest run in FLOPs per token, of the same precision, says how far the usual plan is
    off; the plan is that, give or take MEASURED_SPREAD."""

    runs: list[dict[str, Any]]

    def apply(self, step: Step, cluster: ClusterConfig) -> tuple[StepTime, StepTime]:
        """Best and usual time of a step."""
        wanted = flops_per_token(step.model, step.seq_len)
        same = [run for run in self.runs if run["precision"] == step.precision]
        if not same:
            raise InputError(
                f"the calibration has no run with precision={step.precision}: measure one."
            )
        shapes = [(ModelConfig(**run["model"]), run) for run in same]
        shape, run = min(
            shapes, key=lambda pair: abs(flops_per_token(pair[0], pair[1]["seq_len"]) - wanted)
        )
        tokens = run["batch_tokens"]
        alone = ParallelConfig(dp_shard=1, micro_batch_tokens=tokens)
        planned = step_time(
            Step(shape, run["seq_len"], tokens, step.precision, alone, step.state_bytes),
            cluster,
            False,
        )
        factor = tokens / run["tokens_per_second"] / planned.total
        usual = step_time(step, cluster, False)
        low, high = (usual.scaled(factor * (1 + e)) for e in (-MEASURED_SPREAD, MEASURED_SPREAD))
        return low, high

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Raises InputError where the file is none."""
        if not path.is_file():
            raise InputError(f"calibration={path} does not exist: expected a JSON file of runs.")
        try:
            runs = json.loads(path.read_text())["runs"]
            whole = all(run.keys() >= MEASURED and ModelConfig(**run["model"]) for run in runs)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise InputError(
                f"calibration={path} holds no `runs` with {', '.join(sorted(MEASURED))}; "
                "benchmarks/gpu_training.py writes such a file."
            )
        return cls(runs)
