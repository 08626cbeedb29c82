"""Plans a run: memory and time of every layout, and details of the fastest one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from conf.errors import InputError
from conf.text import GIB
from data_pipeline.sampling.dealing import Deal, blank_note
from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from data_pipeline.sampling.stage_sources import SourceTokens
from data_pipeline.store.corpus import open_corpus
from launch.plan.calibration import Calibration
from launch.plan.config import PlanConfig
from launch.plan.speed import Step, StepTime, flops_of, model_flops_utilization, step_time
from model.flops import parameters
from pretrain.checkpoints.interval import best_interval
from pretrain.checks import check_networks, check_stages
from pretrain.config import AUTO
from pretrain.planning.layouts import LayoutCandidate, Machine, candidates, requirements_of
from pretrain.planning.memory import optimizer_bytes, parameter_shapes
from pretrain.planning.teacher import teacher_of
from pretrain.preflight import train_tokens
from pretrain.recipe import training_config
from pretrain.teacher_cache.records import RecordForm

DAY_SECONDS = 86_400
SMALL_MICRO_BATCH_TOKENS = 4096
"""Tokens per forward pass below which the matrix products of a GPU are inefficient (assumed)."""
RESTART_SECONDS = 300.0
"""Time from a failure to the next step: scheduler, imports, loading (assumed)."""
TIE_RATIO = 1.01
"""Ratio of two times below which two layouts count as equally fast."""
MIN_SCALING = 0.85
"""Scaling efficiency below which the plan warns about communication."""


@dataclass(frozen=True)
class Estimate:
    """A quantity, estimated for the best known speed and for the typical speed."""

    best: float
    typical: float

    def map(self, change: Callable[[float], float]) -> Estimate:
        """Returns the estimate with `change` applied to both numbers."""
        return Estimate(change(self.best), change(self.typical))

    @property
    def low(self) -> float:
        """Returns the smaller of the two numbers."""
        return min(self.best, self.typical)

    @property
    def high(self) -> float:
        """Returns the larger of the two numbers."""
        return max(self.best, self.typical)


@dataclass(frozen=True)
class StageOutlook:
    """The estimated speed and duration of one stage in one layout.

    tokens: number of tokens that the run trains in the stage, without those of a trunk.
    times: the best and the typical time of a step.
    """

    stage: ScheduledStage
    tokens: int
    precision: str
    times: tuple[StepTime, StepTime]
    tokens_per_second: Estimate
    mfu: Estimate
    days: Estimate
    flops_per_token: float
    batch_tokens: int
    deal: Deal

    @property
    def scaling_efficiency(self) -> float:
        """Returns the fraction of a typical step that is not exposed communication."""
        return self.times[1].compute / self.times[1].total


@dataclass(frozen=True)
class LayoutOutlook:
    """A layout that fits the GPUs, with all stages in it."""

    option: LayoutCandidate
    stages: list[StageOutlook]

    @property
    def days(self) -> Estimate:
        """Returns the days that all stages take together, without saves and failures."""
        return Estimate(
            sum(s.days.best for s in self.stages), sum(s.days.typical for s in self.stages)
        )


@dataclass(frozen=True)
class Reliability:
    """Expected checkpoints and failures of a run.

    checkpoint_bytes: size of one checkpoint.
    save_seconds: time to write it from all nodes at once.
    interval_seconds: time between saves, by Young's rule.
    lost: fraction of the time that saves and failures take.
    failures: expected number of failures in the run.
    """

    checkpoint_bytes: int
    save_seconds: float
    interval_seconds: float
    lost: float
    failures: float


@dataclass(frozen=True)
class Outlook:
    """The plan of a run. That of a branch covers the steps after the fork.

    layouts: the layouts that fit, fastest first.
    refused: the other layouts.
    epochs: passes over each source, with those of a trunk.
    fork: number of steps that the trunk of a branch has done; 0 for other runs.
    calibration: path of the measured speeds, if any.
    measured_memory: whether activations are scaled to measured ones.
    """

    config: PlanConfig
    plan: StagePlan
    layouts: list[LayoutOutlook]
    refused: list[LayoutCandidate]
    reliability: Reliability
    epochs: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    calibration: str | None = None
    measured_memory: bool = False
    fork: int = 0

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that the run trains itself."""
        return sum(stage.tokens for stage in self.best.stages)

    @property
    def steps(self) -> int:
        """Returns the number of steps that the run takes itself."""
        return self.plan.total_steps - self.fork

    @property
    def best(self) -> LayoutOutlook:
        """Returns the fastest layout."""
        return self.layouts[0]

    @property
    def days(self) -> Estimate:
        """Returns the days in the best layout, including saves and failures."""
        return self.best.days.map(lambda days: days / (1 - self.reliability.lost))

    @property
    def gpu_hours(self) -> Estimate:
        """Returns the hours of all GPUs together."""
        return self.days.map(lambda days: days * 24 * self.config.cluster.world_size)

    @property
    def energy_kwh(self) -> Estimate:
        """Returns the energy in kWh, at the power per GPU that the cluster's file gives."""
        return self.gpu_hours.map(lambda hours: hours * self.config.cluster.gpu_watts / 1000)

    @property
    def cost(self) -> Estimate:
        """Returns the cost at the prices of the cluster's file."""
        cluster = self.config.cluster
        hourly = cluster.gpu_hour_price + cluster.gpu_watts / 1000 * cluster.kwh_price
        return self.gpu_hours.map(lambda hours: hours * hourly)

    @property
    def data_bytes(self) -> int:
        """Returns the size of the shards if every token is read once, at 2 or 4 bytes per token."""
        size = 2 if self.config.model.vocab_size <= 1 << 16 else 4
        return self.tokens * size

    @property
    def answer_bytes(self) -> int:
        """Returns the size of a cache of the teacher's answers to all samples; 0 without one."""
        teacher, vocab_size = teacher_of(self.config.objective), self.config.model.vocab_size
        if teacher is None:
            return 0
        return sum(
            found.tokens
            // found.stage.seq_len
            * RecordForm(found.stage.seq_len, teacher.top_k, vocab_size).record_bytes
            for found in self.best.stages
        )


def make_outlook(config: PlanConfig, fork: int = 0) -> Outlook:
    """Returns the plan of a run.

    Args:
        config: The run and the cluster.
        fork: Number of steps that the trunk of a branch has done.

    Raises:
        InputError: No layout fits.
    """
    cluster = config.cluster
    plan = StagePlan(config.recipe, source_tokens(config))
    check_stages(plan, config.parallel, config.model.max_seq_len)
    check_networks(config.model, plan)
    machine = Machine(
        cluster.world_size,
        cluster.gpus_per_node,
        int(cluster.gpu_memory_gib * GIB),
        cluster.device,
    )
    calibration = Calibration.read(Path(config.calibration)) if config.calibration else None
    requirements = requirements_of(config, plan)
    if calibration is not None:
        is_compiled = config.parallel.compile in (True, AUTO) and cluster.device == "cuda"
        ratios = calibration.activation_ratios(is_compiled)
        requirements = replace(requirements, activation_ratios=ratios)
    found = candidates(requirements, machine)
    shapes = parameter_shapes(config.model)
    state_bytes = optimizer_bytes(shapes, config.optim.name) / sum(
        shape.numel() for shape in shapes.values()
    )
    fitting = []
    for option in found:
        if option.problem is None:
            stages = [
                stage_outlook(config, plan, stage, option, calibration, state_bytes, fork)
                for stage in plan.own_stages
                if stage.end_step > fork
            ]
            fitting.append(LayoutOutlook(option, stages))
    refused = [option for option in found if option.problem is not None]
    if not fitting:
        closest = min(
            refused, key=lambda o: o.memory.total if o.memory is not None else float("inf")
        )
        raise InputError(
            f"model={config.model.name}: no layout fits {cluster.world_size} x {cluster.gpu}. The "
            f"closest one, {closest.name}, {closest.problem}. Use more nodes, another batch, "
            "shorter sequences or a smaller model."
        )
    fastest = min(layout.days.typical for layout in fitting)

    def rank(layout: LayoutOutlook) -> int:
        return int(math.log(layout.days.typical / fastest) / math.log(TIE_RATIO))

    # The sort is stable, so equally fast layouts stay in the order of `candidates`, simplest first.
    fitting.sort(key=rank)
    days = fitting[0].days.typical
    passes = epochs(config, plan)
    return Outlook(
        config,
        plan,
        fitting,
        refused,
        reliability(config, days),
        passes,
        list(warnings(config, plan, fitting[0], passes)),
        config.calibration,
        bool(requirements.activation_ratios),
        fork,
    )


def source_tokens(config: PlanConfig) -> SourceTokens:
    """Returns the tokens per source of the corpus, or unlimited numbers without a corpus."""
    if config.data is not None:
        return open_corpus(config.data).edition_tokens("train")
    return train_tokens(config.recipe, None)


def stage_outlook(
    config: PlanConfig,
    plan: StagePlan,
    stage: ScheduledStage,
    option: LayoutCandidate,
    calibration: Calibration | None,
    state_bytes: float,
    fork: int,
) -> StageOutlook:
    """Returns the part of a stage after step `fork` in one layout, at its most frequent batch size.

    `state_bytes` is the size of the optimizer's state per parameter.
    """
    precision = training_config(stage).precision or config.precision
    levels = [level for level in plan.levels if level.stage == stage.index]
    level = max(levels, key=lambda x: x.first_step + x.steps - max(fork, x.first_step))
    done = plan.tokens_at(fork) - stage.first_token if fork > stage.first_step else 0
    tokens = stage.tokens - done
    teacher = teacher_of(config.objective)
    step = Step(
        config.model,
        stage.seq_len,
        level.tokens_per_step,
        precision,
        option.parallel,
        state_bytes,
        teacher.network if teacher is not None else None,
    )
    times = (step_time(step, config.cluster, True), step_time(step, config.cluster, False))
    if calibration is not None:
        times = calibration.apply(step, config.cluster)
    seconds = Estimate(times[0].total, times[1].total)
    steps = tokens / level.tokens_per_step
    return StageOutlook(
        stage,
        tokens,
        precision,
        times,
        seconds.map(lambda s: level.tokens_per_step / s),
        seconds.map(lambda s: model_flops_utilization(step, config.cluster, s)),
        seconds.map(lambda s: s * steps / DAY_SECONDS),
        flops_of(step),
        level.tokens_per_step,
        step.deal,
    )


def reliability(config: PlanConfig, days: float) -> Reliability:
    """Returns the checkpoints and expected failures of a run that takes `days` days."""
    cluster = config.cluster
    shapes = parameter_shapes(config.model)
    weights = sum(shape.numel() for shape in shapes.values())
    copies = 1 if config.ema.decay is None else 2  # the weights and their average
    size = copies * 4 * weights + optimizer_bytes(shapes, config.optim.name)
    if config.model.tie_embeddings:
        size = size * parameters(config.model) // weights
    seconds = size / (cluster.nodes * cluster.storage_gb_s * 1e9)
    mttf = cluster.node_mttf_days * DAY_SECONDS / cluster.nodes
    interval = best_interval(seconds, mttf)
    lost = seconds / (interval + seconds) + (interval / 2 + RESTART_SECONDS) / mttf
    return Reliability(size, seconds, interval, lost, days * DAY_SECONDS / mttf)


def epochs(config: PlanConfig, plan: StagePlan) -> dict[str, float]:
    """Returns the number of passes over each source of the corpus, or {} without a corpus.

    If the corpus grows between two stages, the current pass continues with what was added.
    """
    if config.data is None:
        return {}
    passes: dict[str, float] = {}
    before = plan.source_tokens
    for stage in plan.stages:
        now, total = stage.source_tokens or plan.source_tokens, sum(stage.weights.values())
        for source, tokens in now.items():
            done = passes.get(source, 0.0)
            if done and tokens != before[source]:
                whole = math.ceil(done) - 1
                done = whole + (done - whole) * before[source] / tokens
            used = stage.tokens * stage.weights.get(source, 0.0) / total
            passes[source] = done + used / max(1, tokens)
        before = now
    return passes


def warnings(
    config: PlanConfig, plan: StagePlan, best: LayoutOutlook, passes: dict[str, float]
) -> Iterator[str]:
    """Yields sentences about properties of the plan that the user may not have intended."""
    parallel, cluster = best.option.parallel, config.cluster
    each = parallel.micro_batch_tokens // parallel.cp
    if each < SMALL_MICRO_BATCH_TOKENS and cluster.device == "cuda":
        yield (
            f"Each GPU forwards {each:,} tokens at a time. Below {SMALL_MICRO_BATCH_TOKENS:,} "
            "tokens, matrix products are slower than planned. Use fewer GPUs, a larger batch, or "
            "parallel.activation_checkpointing."
        )
    if any(stage.times[1].launch > 0 for stage in best.stages):
        yield (
            f"Launching the kernels of {each:,} tokens takes the host longer than the GPU needs to "
            "compute them. Use larger micro-batches, fewer GPUs or a larger batch."
        )
    for source, times in passes.items():
        if times > config.max_epochs:
            yield (
                f"Source '{source}' is read {times:.1f} times, more than max_epochs="
                f"{config.max_epochs:g}, so pretraining will not start. Add text, or raise "
                "max_epochs. More than 4 repetitions reduce quality (arXiv 2305.16264)."
            )
    window = config.model.sliding_window
    longest = max(stage.seq_len for stage in plan.own_stages)
    if window is not None and longest <= window:
        yield (
            f"model.sliding_window={window} has no effect, because the longest sequence has only "
            f"{longest:,} tokens."
        )
    note = blank_note(plan, parallel.dp_replicate * parallel.dp_shard, parallel.micro_batch_tokens)
    if note is not None:
        yield f"In the layout {best.option.name}, {note}"
    if best.stages and min(stage.scaling_efficiency for stage in best.stages) < MIN_SCALING:
        yield (
            f"More than {1 - MIN_SCALING:.0%} of a step is communication that computation does not "
            "hide. Use a larger batch per GPU."
        )
