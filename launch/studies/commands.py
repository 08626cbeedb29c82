"""The complete command of each run of a study, and what it will do.

A branch is composed before its trunk has run: the trunk's checkpoint is described from its plan.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from conf.entry import to_settings
from conf.errors import InputError
from conf.overrides import compose_command, readable, store_schema
from data_pipeline.sampling.recipe import StagePlan
from launch.studies.base_command import BaseCommand, merged
from launch.studies.kind import StudyRun
from pretrain.branches import choice
from pretrain.branches.trunk import Trunk
from pretrain.checks import sample_order
from pretrain.config import PretrainConfig
from pretrain.preflight import train_tokens

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RunCommand:
    """A run of a study and its command.

    Attributes:
        run: The run.
        overrides: All overrides of `python -m pretrain`.
        settings: The settings that they compose.
        plan: The stages of the recipe, of a branch also those of its trunk.
        fork: Number of steps of the trunk, 0 for a run that is not a branch.
    """

    run: StudyRun
    overrides: tuple[str, ...]
    settings: PretrainConfig
    plan: StagePlan
    fork: int = 0

    @property
    def tokens(self) -> int:
        """Returns the tokens that the run itself trains on."""
        return self.plan.total_tokens - self.plan.tokens_at(self.fork)

    @property
    def own_steps(self) -> int:
        """Returns the number of steps of the run itself."""
        return self.plan.total_steps - self.fork


def commands_of(base: BaseCommand, runs: Sequence[StudyRun]) -> dict[str, RunCommand]:
    """Returns the commands of runs by name, each trunk before its branches.

    Raises:
        InputError: `python -m pretrain` would refuse one of them, or a name is not possible.
    """
    known = {run.name: run for run in runs}
    if len(known) < len(runs):
        twice = next(r.name for i, r in enumerate(runs) if r.name in {q.name for q in runs[:i]})
        raise InputError(f"study: two runs have the name '{twice}'. Give each value once.")
    made: dict[str, RunCommand] = {}
    forks: dict[str, set[int]] = {}

    def make(run: StudyRun) -> RunCommand:
        if run.name in made:
            return made[run.name]
        if not NAME.fullmatch(run.name):
            raise InputError(f"study: a run cannot have the name '{run.name}'.")
        try:
            if run.trunk is None:
                made[run.name] = _command(base, run)
            else:
                trunk = make(known[run.trunk])
                step = step_at(trunk.plan, run.trunk_tokens or 0)
                forks.setdefault(run.trunk, set()).add(step)
                made[run.name] = _branch(base, run, trunk, step)
        except InputError as error:
            raise InputError(f"study: run {run.name}: {error}") from None
        return made[run.name]

    for run in runs:
        make(run)
    return {
        name: _with_forks(command, sorted(forks.get(name, ()))) for name, command in made.items()
    }


def step_at(plan: StagePlan, tokens: int) -> int:
    """Returns the step, at least 1, after which a run has seen about this number of tokens."""
    step = bisect_left(range(plan.total_steps + 1), tokens, key=plan.tokens_at)
    step = min(step, plan.total_steps)
    if step > 1 and tokens - plan.tokens_at(step - 1) < plan.tokens_at(step) - tokens:
        step -= 1
    return max(1, step)


def _own(base: BaseCommand, run: StudyRun) -> list[str]:
    """Returns the overrides that give a run its name and folder."""
    return [f"name={base.out.name}-{run.name}", f"run_dir={base.run_dir(run.name)}"]


def _command(base: BaseCommand, run: StudyRun) -> RunCommand:
    own = [*run.overrides, *_own(base, run)]
    return RunCommand(run, merged(base.overrides, own), base.settings(own), base.plan(own))


def _branch(base: BaseCommand, run: StudyRun, trunk: RunCommand, step: int) -> RunCommand:
    """Returns the command of a branch, with the base command's keys that a trunk does not give."""
    kept = [one for one in base.overrides if not _is_of_trunk(one)]
    fork = f"branch_from={base.run_dir(trunk.run.name)}@{step}"
    overrides = merged([fork, *kept], [*run.overrides, *_own(base, run)])
    if overrides not in base.composed:
        base.composed[overrides] = _compose(list(overrides), _planned_trunk(base, trunk, step))
    settings = base.composed[overrides]
    plan = StagePlan(settings.recipe, train_tokens(settings.recipe, base.manifest))
    return RunCommand(run, overrides, settings, plan, step)


def _is_of_trunk(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key.partition(".")[0] in choice.GROUPS or key in (*choice.KEYS, "init_from")


def _with_forks(command: RunCommand, steps: list[int]) -> RunCommand:
    """Returns the command of a trunk that keeps the checkpoints of its forks."""
    if not steps:
        return command
    kept = sorted({*command.settings.checkpoint.keep_steps, *steps})
    listed = ",".join(map(str, kept))
    overrides = merged(command.overrides, [f"checkpoint.keep_steps=[{listed}]"])
    checkpoint = replace(command.settings.checkpoint, keep_steps=kept)
    settings = replace(command.settings, checkpoint=checkpoint)
    return replace(command, overrides=overrides, settings=settings)


def _planned_trunk(base: BaseCommand, trunk: RunCommand, step: int) -> Trunk:
    """Returns the step of a trunk as its checkpoint will describe it."""
    order = json.loads(sample_order(trunk.settings, trunk.plan).to_json())
    config: Any = OmegaConf.to_container(OmegaConf.structured(trunk.settings))
    about = {"config": config, "plan": order, "tokens": trunk.plan.tokens_at(step)}
    return Trunk(str(base.run_dir(trunk.run.name)), step, about, [])


def _compose(overrides: list[str], trunk: Trunk) -> PretrainConfig:
    """Returns the settings of a branch of a trunk that need not exist yet."""
    store_schema("pretrain", PretrainConfig)
    arguments = choice.with_groups(overrides, trunk)
    found = choice.with_recipe(readable(arguments, "pretrain", PretrainConfig), "pretrain", trunk)
    settings: PretrainConfig = to_settings(compose_command("pretrain", found))
    return settings
