"""The plain kind of study: every combination of given values, and which one is best."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, variance

from conf.errors import InputError
from launch.slurm.sweep import points_of
from launch.studies.base_command import BaseCommand
from launch.studies.branching import budget_runs
from launch.studies.kind import FIT, Finding, RunResult, StudyKind, StudyRun, Table

CERTAIN_ERRORS = 2.0
"""Standard errors of a difference above which the text calls it more than noise."""


@dataclass(frozen=True)
class Group:
    """The runs of one combination of values, which differ in their seeds only."""

    label: str
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Returns the mean loss."""
        return mean(self.losses)


@dataclass
class Study(StudyKind):
    """Every combination of the given values, once per seed.

    vary: overrides with several values each, such as optim.learning_rate=1e-3,3e-3.
    budgets: numbers of tokens; each combination then trains once at a constant rate, with a branch
        per budget whose rate decays to 0. Empty for whole runs of the base command's recipe.
    decay_fraction: fraction of each budget in which the rate decays.
    """

    vary: list[str] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay_fraction < 1:
            raise InputError(
                f"study.decay_fraction={self.decay_fraction}: expected more than 0, less than 1."
            )
        if any(budget < 1 for budget in self.budgets):
            raise InputError(f"study.budgets={self.budgets}: expected numbers of tokens above 0.")

    def runs(self, base: BaseCommand, results: Sequence[RunResult]) -> list[StudyRun]:
        """Returns one run per combination, seed and budget."""
        found = []
        for seed in self.seeds:
            for point in points_of(list(self.vary)) if self.vary else [{}]:
                overrides = (*(f"{key}={value}" for key, value in point.items()), f"seed={seed}")
                values: dict[str, float | int | str] = {
                    key.lstrip("+"): _number(value) for key, value in point.items()
                }
                values["seed"] = seed
                run = StudyRun(_name(values, len(self.seeds) > 1), overrides, values)
                found += budget_runs(base, run, self.budgets, self.decay_fraction)
        return found

    def finding(self, base: BaseCommand, results: Sequence[RunResult]) -> Finding:
        """Returns the combination with the lowest held-out loss, and how certain that is."""
        groups = sorted(grouped(results), key=lambda group: group.loss)
        if not groups:
            raise InputError("study: no run has finished, so nothing can be compared.")
        best = groups[0]
        numbers = {
            "best": best.label,
            "loss": best.loss,
            "groups": [{"values": g.label, "losses": g.losses} for g in groups],
        }
        tables = [_table(groups)]
        if len(groups) == 1:
            decision = f"The only combination reaches a held-out loss of {best.loss:.4f}."
            return Finding(decision, tables=tables, numbers=numbers)
        gap = groups[1].loss - best.loss
        decision = (
            f"{best.label} is best: its held-out loss of {best.loss:.4f} nats per token is "
            f"{gap:.4f} lower than that of {groups[1].label}, {certainty(groups)}."
        )
        return Finding(decision, tables=tables, numbers=numbers | {"gap": gap})


def grouped(results: Sequence[RunResult]) -> list[Group]:
    """Returns the losses of the runs that are compared, by their values without the seed."""
    losses: dict[str, list[float]] = defaultdict(list)
    for result in results:
        if result.run.role == FIT:
            values = {key: value for key, value in result.run.values.items() if key != "seed"}
            losses[", ".join(f"{k}={v}" for k, v in values.items()) or "base"].append(result.loss)
    return [Group(label, tuple(found)) for label, found in losses.items()]


def standard_error(groups: Sequence[Group]) -> float | None:
    """Returns the standard error of the difference of the first two groups' means.

    The variance between seeds is pooled over all groups. None if no group has two seeds.
    """
    repeated = [group for group in groups if len(group.losses) > 1]
    freedom = sum(len(group.losses) - 1 for group in repeated)
    if not freedom:
        return None
    pooled = sum(variance(g.losses) * (len(g.losses) - 1) for g in repeated) / freedom
    return math.sqrt(pooled * sum(1 / len(group.losses) for group in groups[:2]))


def certainty(groups: Sequence[Group]) -> str:
    """Returns how certain the order of the first two groups is."""
    error = standard_error(groups)
    if error is None:
        return "which one seed cannot distinguish from noise; repeat it with study.seeds=[0,1,2]"
    ratio = (groups[1].loss - groups[0].loss) / error if error else math.inf
    times = f"{ratio:.1f} standard errors of that difference"
    return f"{times}, {'more than' if ratio > CERTAIN_ERRORS else 'not distinguishable from'} noise"


def _table(groups: Sequence[Group]) -> Table:
    rows = [
        [
            group.label,
            f"{group.loss:.4f}",
            f"{group.loss - groups[0].loss:+.4f}",
            str(len(group.losses)),
        ]
        for group in groups
    ]
    columns = ["values", "held-out loss", "above the best", "seeds"]
    return Table("Combinations, best first", columns, rows)


def _name(values: dict[str, float | int | str], with_seed: bool) -> str:
    """Returns the name of a run from the last parts of its keys and their values."""

    def part(key: str, value: float | int | str) -> str:
        kept = "".join(c if c.isalnum() or c in "._" else "_" for c in str(value))
        return f"{key.rpartition('.')[2]}_{kept}"

    shown = [key for key in values if key != "seed" or with_seed or len(values) == 1]
    return "-".join(part(key, values[key]) for key in shown)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
