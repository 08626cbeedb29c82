"""The best learning rate of models of several widths and depths, and how far it moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from conf.errors import InputError, one_of
from launch.studies.base_command import BaseCommand
from launch.studies.fits.parabola import Optimum, drift, optimum
from launch.studies.kind import FIT, Figure, Finding, RunResult, StudyKind, StudyRun, Table
from launch.studies.shapes import completep, resized
from model.config import ModelConfig
from model.parametrization import PARAMETRIZATIONS
from pages.drawing import draw
from pages.svg import Chart, Series

STEADY = 1.5
"""Largest factor between optima that the decision calls steady."""
CHECKED_VOCABULARY, CHECKED_WIDTH, CHECK_RATE = 256, 512, 0.002
"""Largest vocabulary and width in the coordinate check of a page, and its learning rate."""
Size = tuple[int, int]
"""Width and depth."""


@dataclass
class Study(StudyKind):
    """Several learning rates for each width and depth, under each parametrization.

    The model of the base command is the base model. Its width varies at its depth, and its depth at
    its width, with its proportions.

    rates: learning rates of the base model.
    hidden_sizes: widths, in addition to that of the base model.
    num_layers: depths, in addition to that of the base model.
    parametrizations: values of model.parametrization to compare.
    coordinate_steps: steps of the coordinate check that the page shows; 0 for none.
    """

    rates: list[float] = field(default_factory=list)
    hidden_sizes: list[int] = field(default_factory=list)
    num_layers: list[int] = field(default_factory=list)
    parametrizations: list[str] = field(default_factory=lambda: ["completep"])
    coordinate_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.rates)) < 3 or min(self.rates) <= 0:
            raise InputError(
                f"study.rates={self.rates}: expected three or more different rates above 0, since "
                "a parabola is fitted to their losses."
            )
        for name in self.parametrizations:
            one_of("study.parametrizations", name, PARAMETRIZATIONS)

    def sizes(self, model: ModelConfig) -> list[Size]:
        """Returns the sizes to train, that of the base model first."""
        wide = [(width, model.num_layers) for width in self.hidden_sizes]
        deep = [(model.hidden_size, depth) for depth in self.num_layers]
        return list(dict.fromkeys([(model.hidden_size, model.num_layers), *wide, *deep]))

    def runs(self, base: BaseCommand, results: Sequence[RunResult]) -> list[StudyRun]:
        """Returns one run per seed, parametrization, size and rate."""
        optim, model = base.settings().optim, base.model()
        if model.parametrization != "standard":
            raise InputError(
                f"model.parametrization={model.parametrization}: this study sets the "
                "parametrization, with the model of the base command as the base model. Remove "
                "the key from the base command."
            )
        lowest = optim.min_learning_rate / optim.learning_rate
        found = []
        for seed in self.seeds:
            for kind in self.parametrizations:
                for size in self.sizes(model):
                    shape = tuple(_shape(model, size, kind))
                    for rate in self.rates:
                        values: dict[str, float | int | str] = {
                            "parametrization": kind,
                            "hidden_size": size[0],
                            "num_layers": size[1],
                            "learning_rate": rate,
                            "seed": seed,
                        }
                        overrides = (
                            *shape,
                            f"optim.learning_rate={rate}",
                            f"optim.min_learning_rate={rate * lowest}",
                            f"seed={seed}",
                        )
                        name = f"{kind}-{size[0]}x{size[1]}-rate_{rate:g}-seed_{seed}"
                        found.append(StudyRun(name, overrides, values))
        return found

    def finding(self, base: BaseCommand, results: Sequence[RunResult]) -> Finding:
        """Returns the optimum of each size, how far it moves, and the rate to use."""
        losses = by_size(results)
        optima: dict[str, dict[Size, Optimum]] = defaultdict(dict)
        for (kind, size), found in losses.items():
            if len(found) >= 3:
                optima[kind][size] = optimum(found)
        if not optima:
            raise InputError(
                "study: no size has finished runs at three rates, so nothing is known."
            )
        moves = {kind: drift(list(found.values())) for kind, found in optima.items()}
        best = min(moves, key=lambda kind: moves[kind])
        figures = [rates_figure(kind, losses) for kind in optima]
        if self.coordinate_steps and len(self.sizes(base.model())) > 1:
            figures += self.coordinate_figures(base)
        return Finding(
            decision(best, optima[best], moves),
            facts=facts(optima, moves),
            figures=figures,
            tables=[optima_table(optima)],
            numbers={
                "drift": moves,
                "optima": [
                    {
                        "parametrization": kind,
                        "hidden_size": size[0],
                        "num_layers": size[1],
                        "learning_rate": one.rate,
                        "interval": one.interval,
                        "bounded": one.bounded,
                    }
                    for kind, found in optima.items()
                    for size, one in found.items()
                ],
            },
        )

    def coordinate_figures(self, base: BaseCommand) -> Iterator[Figure]:
        """Yields the coordinate check of each parametrization over widths, and over depths."""
        from launch.studies.coordinates import coordinate_check, drawn  # imports torch

        whole = base.model()
        model = replace(whole, vocab_size=min(whole.vocab_size, CHECKED_VOCABULARY))
        optim = replace(
            base.settings().optim,
            learning_rate=CHECK_RATE,
            min_learning_rate=0.0,
            groups={},
            weight_decay=0.0,
        )
        sizes = [size for size in self.sizes(model) if size[0] <= CHECKED_WIDTH]
        for kind in self.parametrizations:
            for number, name in enumerate(("hidden_size", "num_layers")):
                fixed = sizes[0][1 - number] if sizes else 0
                chosen = sorted(size for size in sizes if size[1 - number] == fixed)
                if len(chosen) < 2:
                    continue
                models = [_model(model, size, kind) for size in chosen]
                points = coordinate_check(models, optim, self.coordinate_steps)
                yield Figure(
                    drawn(points, name, f"Coordinate check over {name}, {kind}"),
                    f"Change of activations in {self.coordinate_steps} steps at a learning rate "
                    f"of {CHECK_RATE}. Hyperparameters can transfer where the lines are flat.",
                )


def by_size(
    results: Sequence[RunResult],
) -> dict[tuple[str, Size], dict[float, list[float]]]:
    """Returns the losses of all seeds by rate, for each parametrization and size."""
    losses: dict[tuple[str, Size], dict[float, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for result in results:
        if result.run.role == FIT:
            values = result.run.values
            size = int(values["hidden_size"]), int(values["num_layers"])
            rates = losses[str(values["parametrization"]), size]
            rates[float(values["learning_rate"])].append(result.loss)
    return losses


def decision(kind: str, optima: dict[Size, Optimum], moves: dict[str, float]) -> str:
    """Returns what to do, and how certain that is."""
    last = max(optima, key=lambda size: size[0] ** 2 * size[1])
    found = optima[last]
    others = ", ".join(f"{move:.2f} with {name}" for name, move in moves.items() if name != kind)
    unbounded = [size for size, one in optima.items() if not one.bounded]
    if unbounded:
        where = ", ".join(f"{width} x {depth}" for width, depth in unbounded)
        return (
            f"The rates do not contain the optimum of {where} with {kind}, so add lower or higher "
            f"ones to study.rates; the best so far is optim.learning_rate={found.rate:.4g}."
        )
    steady = "steady" if moves[kind] <= STEADY else "not steady"
    return (
        f"Use optim.learning_rate={found.rate:.4g}{_within(found)} with "
        f"model.parametrization={kind}: over {len(optima)} sizes its optimum is {steady}, it moves "
        f"by a factor of {moves[kind]:.2f}{f' ({others})' if others else ''}."
    )


def facts(optima: dict[str, dict[Size, Optimum]], moves: dict[str, float]) -> list[str]:
    """Returns one sentence per parametrization."""
    return [
        f"With {kind}, the optimum of {len(found)} sizes is between "
        f"{min(one.rate for one in found.values()):.4g} and "
        f"{max(one.rate for one in found.values()):.4g}, a factor of {moves[kind]:.2f}."
        for kind, found in optima.items()
    ]


def rates_figure(kind: str, losses: dict[tuple[str, Size], dict[float, list[float]]]) -> Figure:
    """Returns the mean loss over the rate, one line per size."""
    lines = [
        Series(
            f"{size[0]} x {size[1]}",
            [(rate, mean(found)) for rate, found in sorted(rates.items())],
            f"s{number % 7 + 1}",
            dots=True,
        )
        for number, (size, rates) in enumerate(
            (size, rates) for (name, size), rates in losses.items() if name == kind
        )
    ]
    chart = Chart(
        f"Loss over the learning rate, {kind}",
        "nats per token",
        lines,
        x_label="optim.learning_rate",
        log_x=True,
    )
    return Figure(
        draw(chart, is_wide=True), "Held-out loss by width x depth, the mean of the seeds."
    )


def optima_table(optima: dict[str, dict[Size, Optimum]]) -> Table:
    """Returns the optimum of each parametrization and size."""
    rows = [
        [
            kind,
            f"{size[0]} x {size[1]}",
            f"{one.rate:.4g}",
            "outside of the rates" if not one.bounded else _within(one).strip(" ()") or "unknown",
            f"{one.loss:.4f}",
        ]
        for kind, found in optima.items()
        for size, one in found.items()
    ]
    columns = ["parametrization", "width x depth", "best rate", "90% interval", "loss there"]
    return Table("Optimum of the learning rate", columns, rows)


def _within(found: Optimum) -> str:
    """Returns the interval in parentheses, or an empty text."""
    return "" if found.interval is None else " ({:.4g} to {:.4g})".format(*found.interval)


def _model(model: ModelConfig, size: Size, kind: str) -> ModelConfig:
    """Returns the model of a size under a parametrization."""
    other = resized(model, *size)
    return completep(other, model) if kind == "completep" else other


def _shape(model: ModelConfig, size: Size, kind: str) -> Iterator[str]:
    """Yields the overrides that make a size of the base model under a parametrization."""
    other = _model(model, size, kind)
    for key in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size"):
        yield f"model.{key}={getattr(other, key)}"
    yield f"model.head_dim={other.head_dim}"
    if kind == "completep":
        yield f"model.parametrization={kind}"
        yield f"model.base_hidden_size={other.base_hidden_size}"
        yield f"model.base_num_layers={other.base_num_layers}"
