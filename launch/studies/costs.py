"""The planned cost of runs: tokens, FLOPs, hours and money, computed as `launch plan` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launch.plan.cluster import ClusterConfig
from launch.plan.config import PlanConfig
from launch.plan.outlook import DAY_SECONDS, make_outlook
from launch.studies.commands import RunCommand
from launch.studies.fits.speed import Speed
from model.flops import flops_per_token
from pretrain.branches.trunk import parse


@dataclass(frozen=True)
class Cost:
    """Cost of one run or of several.

    Attributes:
        tokens: Tokens trained on.
        flops: Training FLOPs.
        seconds: Duration.
        price: Price at the prices of the cluster's file.
    """

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    price: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.price + other.price,
        )


def total(costs: Iterable[Cost]) -> Cost:
    """Returns the sum of costs."""
    return sum(costs, Cost())


class Costs:
    """Plans the cost of runs on a cluster."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.cluster = cluster
        self._seconds: dict[str, float] = {}

    def at(self, speed: Speed, command: RunCommand) -> Cost:
        """Returns the planned cost of a run, without the part of its trunk.

        Raises:
            InputError: the run does not fit into the memory of the cluster's GPUs.
        """
        stages = command.plan.own_stages
        model = command.settings.model
        flops = sum(stage.tokens * flops_per_token(model, stage.seq_len) for stage in stages)
        seconds = speed.seconds(command.own_steps, self.seconds(command))
        hourly = (
            self.cluster.gpu_hour_price + self.cluster.gpu_watts / 1000 * self.cluster.kwh_price
        )
        price = seconds / 3600 * hourly * self.cluster.world_size
        return Cost(command.tokens, flops, seconds, price)

    def seconds(self, command: RunCommand) -> float:
        """Returns the seconds that the FLOPs of a run take at the typical speed of the cluster.

        Runs that differ in rates have the same ones.
        """
        settings = command.settings
        fork = parse(settings.branch_from)[1] if settings.branch_from else 0
        key = repr(
            (settings.model, command.plan.stages, fork, settings.parallel, settings.objective)
        )
        key += f"{settings.precision}{settings.optim.name}"
        if key not in self._seconds:
            config = PlanConfig(
                model=settings.model,
                recipe=settings.recipe,
                optim=settings.optim,
                parallel=settings.parallel,
                objective=settings.objective,
                cluster=self.cluster,
                precision=settings.precision,
                ema=settings.ema,
                data=settings.data.folder,
                max_epochs=settings.data.max_epochs,
            )
            stages = make_outlook(config, fork).best.stages
            self._seconds[key] = sum(stage.days.typical for stage in stages) * DAY_SECONDS
        return self._seconds[key]
