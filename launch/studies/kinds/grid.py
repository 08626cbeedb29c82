"""The plain kind of study: combinations of values, or named cases, and which one is best."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from statistics import mean, variance

from conf.errors import InputError
from launch.slurm.sweep import points_of
from launch.studies.base_command import BaseCommand
from launch.studies.branching import BUDGET, budget_runs
from launch.studies.kind import FIT, Finding, RunResult, StudyKind, StudyRun, Table
from pages.svg import short_number

CASE = "case"
"""The value by which named cases differ."""

CERTAIN_ERRORS = 2.0
"""Standard errors of a difference above which the text calls it more than noise."""


@dataclass(frozen=True)
class Group:
    """The runs of one combination of values, which differ in their seeds only.

    Attributes:
        label: The values.
        losses: Held-out losses in nats per token, in the order of the seeds.
        tokens: Tokens of each run.
        seconds: Mean time of the runs' steps.
    """

    label: str
    losses: tuple[float, ...]
    tokens: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Returns the mean loss."""
        return mean(self.losses)


@dataclass
class Study(StudyKind):
    """Every combination of the given values, once per seed.

    vary: overrides with several values each, such as optim.learning_rate=1e-3,3e-3.
    cases: lists of overrides by name, for choices that change several keys at once. Every case is
        combined with every combination of `vary`. The best case is compared with the first one.
    budgets: numbers of tokens; each combination then trains once at a constant rate, with a branch
        per budget whose rate decays to 0. Empty for whole runs of the base command's recipe.
    decay_fraction: fraction of each budget in which the rate decays.
    """

    vary: list[str] = field(default_factory=list)
    cases: dict[str, list[str]] = field(default_factory=dict)
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
        """Returns one run per case, combination, seed and budget."""
        found = []
        points = points_of(list(self.vary)) if self.vary else [{}]
        cases = self.cases or {"": []}
        for seed, (case, shared), point in product(self.seeds, cases.items(), points):
            varied = (f"{key}={value}" for key, value in point.items())
            overrides = (*shared, *varied, f"seed={seed}")
            values: dict[str, float | int | str] = {CASE: case} if case else {}
            values |= {key.lstrip("+"): _number(value) for key, value in point.items()}
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
        first = next(iter(self.cases)) if self.cases and not self.vary else None
        decision, *facts = (
            sentence_of(
                found[budget], f"At {short_number(budget)} tokens, " if budget else "", first
            )
            for budget in reversed(budgets)
        )
        return Finding(
            decision,
            facts=facts,
            tables=[_table(found[budget], budget, first) for budget in reversed(budgets)],
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


def sentence_of(groups: Sequence[Group], start: str, first: str | None = None) -> str:
    """Returns the sentence about the best of the groups, which are sorted by their loss.

    Args:
        groups: The groups.
        start: Words before the sentence.
        first: The first case, with which the best one is compared; None for the second best group.
    """
    best = groups[0]
    other = _case(groups, first) or (groups[1] if len(groups) > 1 else best)
    if len(groups) == 1:
        text = f"{best.label} is the only combination: its held-out loss is {best.loss:.4f}."
    elif other is best:
        text = f"No case is better than {best.label}: its held-out loss is {best.loss:.4f}."
    else:
        text = (
            f"{best.label} is best: its held-out loss of {best.loss:.4f} nats per token is "
            f"{other.loss - best.loss:.4f} lower than that of {other.label}, "
            f"{certainty(groups, other)}."
        )
    return start + text


def _case(groups: Sequence[Group], name: str | None) -> Group | None:
    """Returns the group of a case, or None."""
    return next((group for group in groups if group.label == f"{CASE}={name}"), None)


def grouped(results: Sequence[RunResult]) -> list[Group]:
    """Returns the losses of runs by their values without the seed, the lowest mean first."""
    by_label: dict[str, list[RunResult]] = defaultdict(list)
    for result in results:
        parts = [f"{k}={v}" for k, v in result.run.values.items() if k not in ("seed", BUDGET)]
        by_label[", ".join(parts) or "the base command"].append(result)
    groups = [
        Group(
            label,
            tuple(result.loss for result in found),
            found[0].tokens,
            mean(result.seconds for result in found),
        )
        for label, found in by_label.items()
    ]
    return sorted(groups, key=lambda group: group.loss)


def standard_error(groups: Sequence[Group], pair: Sequence[Group]) -> float | None:
    """Returns the standard error of the difference of two groups' means.

    The variance between seeds is pooled over all groups. None if no group has two seeds.
    """
    repeated = [group for group in groups if len(group.losses) > 1]
    freedom = sum(len(group.losses) - 1 for group in repeated)
    if not freedom:
        return None
    pooled = sum(variance(g.losses) * (len(g.losses) - 1) for g in repeated) / freedom
    return math.sqrt(pooled * sum(1 / len(group.losses) for group in pair))


def certainty(groups: Sequence[Group], other: Group) -> str:
    """Returns how certain it is that the first of the groups is better than another one."""
    error = standard_error(groups, (groups[0], other))
    if error is None:
        return "which one seed cannot distinguish from noise; repeat it with study.seeds=[0,1,2]"
    ratio = (other.loss - groups[0].loss) / error if error else math.inf
    times = f"{ratio:.1f} standard errors of that difference"
    return f"{times}, {'more than' if ratio > CERTAIN_ERRORS else 'not distinguishable from'} noise"


def _table(groups: Sequence[Group], budget: int, first: str | None) -> Table:
    reference = _case(groups, first)
    against = reference or groups[0]
    rows = []
    for group in groups:
        error = standard_error(groups, (group, against)) if group is not against else None
        rows.append(
            [
                group.label,
                f"{group.loss:.4f}",
                f"{group.loss - against.loss:+.4f}",
                f"{(group.loss - against.loss) / error:+.1f}" if error else "",
                str(len(group.losses)),
                f"{group.tokens:,}",
                f"{group.seconds:.0f}",
            ]
        )
    than = f"difference from {first}" if reference else "above the best"
    columns = ["values", "held-out loss", than, "in standard errors", "seeds", "tokens", "seconds"]
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
