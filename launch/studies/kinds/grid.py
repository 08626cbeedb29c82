"""The plain kind of study: every combination of given values, and which one is best."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, variance

from conf.errors import InputError
from launch.slurm.sweep import points_of
from launch.studies.base_command import BaseCommand
from launch.studies.branching import BUDGET, budget_runs
from launch.studies.kind import FIT, Finding, RunResult, StudyKind, StudyRun, Table
from pages.svg import short_number

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
        compared = [result for result in results if result.run.role == FIT]
        if not compared:
            raise InputError("study: no run has finished, so nothing can be compared.")
        budgets = sorted({int(result.run.values.get(BUDGET, 0)) for result in compared})
        found = {
            budget: grouped([r for r in compared if int(r.run.values.get(BUDGET, 0)) == budget])
            for budget in budgets
        }
        decision, *facts = (
            sentence_of(found[budget], f"At {short_number(budget)} tokens, " if budget else "")
            for budget in reversed(budgets)
        )
        return Finding(
            decision,
            facts=facts,
            tables=[_table(found[budget], budget) for budget in reversed(budgets)],
            numbers={
                "comparisons": [
                    {
                        "budget": budget or None,
                        "best": groups[0].label,
                        "groups": [asdict(group) | {"loss": group.loss} for group in groups],
                    }
                    for budget, groups in found.items()
                ]
            },
        )


def sentence_of(groups: Sequence[Group], start: str) -> str:
    """Returns the sentence about the best of the groups, which are sorted by their loss."""
    best = groups[0]
    if len(groups) == 1:
        text = f"{best.label} is the only combination: its held-out loss is {best.loss:.4f}."
    else:
        text = (
            f"{best.label} is best: its held-out loss of {best.loss:.4f} nats per token is "
            f"{groups[1].loss - best.loss:.4f} lower than that of {groups[1].label}, "
            f"{certainty(groups)}."
        )
    return start + text


def grouped(results: Sequence[RunResult]) -> list[Group]:
    """Returns the losses of runs by their values without the seed, the lowest mean first."""
    losses: dict[str, list[float]] = defaultdict(list)
    for result in results:
        parts = [f"{k}={v}" for k, v in result.run.values.items() if k not in ("seed", BUDGET)]
        losses[", ".join(parts) or "the base command"].append(result.loss)
    groups = [Group(label, tuple(found)) for label, found in losses.items()]
    return sorted(groups, key=lambda group: group.loss)


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


def _table(groups: Sequence[Group], budget: int) -> Table:
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
    after = f" after {short_number(budget)} tokens" if budget else ""
    return Table(f"Combinations{after}, best first", columns, rows)


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
