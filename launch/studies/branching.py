"""One run at a constant rate that gives results for several token budgets, by decay branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conf.errors import InputError
from launch.studies.base_command import BaseCommand
from launch.studies.kind import TRUNK, StudyRun

STAGE = "decay"
"""Name of the stage of a branch, as in conf/recipe/decay.yaml."""

BUDGET = "budget"
"""The value by which branches differ: their tokens."""


def budget_runs(
    base: BaseCommand, run: StudyRun, budgets: Sequence[int], decay_fraction: float
) -> list[StudyRun]:
    """Returns a run, or with budgets its trunk and one branch per budget.

    The trunk has the rate of `optim` after the warm-up, and trains up to the last fork. A branch
    has seen its budget of tokens at its end, in whole steps, and its rate decays to 0 in the last
    `decay_fraction` of them.

    Args:
        base: The command that the runs share.
        run: The run without budgets.
        budgets: Numbers of tokens, each the total of a branch.
        decay_fraction: Fraction of the budget in which the rate decays.

    Raises:
        InputError: the recipe has several stages, so that its tokens are not one number.
    """
    if not budgets:
        return [run]
    stages = list(base.settings(run.overrides).recipe.stages)
    if len(stages) != 1:
        raise InputError(
            f"study.budgets: the recipe has {len(stages)} stages ({', '.join(stages)}), but a "
            "budget needs one. Give a recipe of one stage."
        )
    plan = base.plan(run.overrides)
    batch = plan.batch_tokens(plan.total_steps - 1)
    ends = {budget: max(2, round(budget / batch)) for budget in sorted(budgets)}  # in steps
    decays = {
        budget: min(end - 1, max(1, round(end * decay_fraction))) for budget, end in ends.items()
    }
    forks = {budget: (end - decays[budget]) * batch for budget, end in ends.items()}
    constant = (
        "optim.schedule=constant",
        "optim.decay_tokens=0",
        f"recipe.stages.{stages[0]}.tokens={max(forks.values())}",
    )
    trunk = replace(
        run, name=f"{run.name}-trunk", overrides=(*run.overrides, *constant), role=TRUNK
    )
    branches = [
        StudyRun(
            name=f"{run.name}-{budget}",
            overrides=(
                f"recipe={STAGE}",
                f"recipe.stages.{STAGE}.tokens={decays[budget] * batch}",
            ),
            values=run.values | {BUDGET: budget},
            role=run.role,
            trunk=trunk.name,
            trunk_tokens=fork,
        )
        for budget, fork in forks.items()
    ]
    return [trunk, *branches]
