"""The recipe of a branch: the stages of its trunk up to the fork, and then stages of its own.

The order of samples of a branch is that of an ordinary run with this recipe, so it is a pure
function of the trunk's recipe, the step of the fork and the stages of the branch. In this example,
a branch with the stage `decay` starts from step 50 of a trunk with the stages `first` (4 steps) and
`stable` (96 steps):

    first     as in the trunk
    stable    ended early: `tokens` of 46 steps, and the trunk's tokens as `planned_tokens`
    decay     the branch's own

The branch thus first serves what is left of the last shuffle window of `stable`, and each source
continues at its position (see `order`). A stage with the name of a stage that the trunk has begun
is that stage: if `decay` had been named `stable`, it would not be ended, and would have to be the
same as in the trunk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from conf.errors import InputError
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan

Recipe = TypeVar("Recipe", bound=RecipeConfig)
FIXED = ("seq_len", "mixture", "documents", "fim", "batch_ramp", "global_batch_tokens")
"""Keys that a stage must have as in the trunk if the branch continues it."""


def fork_recipe(
    trunk: RecipeConfig, plan: StagePlan, step: int, own: Recipe, atom: int, where: str
) -> Recipe:
    """Returns the recipe of a branch, with the stages of its trunk in front of its own.

    Args:
        trunk: The recipe of the trunk.
        plan: The plan of that recipe.
        step: Number of steps of the trunk that the branch has.
        own: The recipe of the branch as it was given.
        atom: Tokens per atom of the trunk's order.
        where: The trunk, for messages.

    Raises:
        InputError: A stage differs from the stage of the trunk that it continues, no stage follows
            the fork, or another atom is given.
    """
    if own.atom_tokens not in (None, atom):
        raise InputError(
            f"recipe.atom_tokens={own.atom_tokens}: the order of {where} has atoms of {atom} "
            "tokens, and a branch continues it. Remove the key."
        )
    for name, stage in own.stages.items():
        if atom % stage.seq_len:
            raise InputError(
                f"recipe.stages.{name}.seq_len={stage.seq_len}: the order of {where} has atoms of "
                f"{atom} tokens, which this length does not divide. Use a shorter one. A trunk for "
                "longer sequences sets recipe.atom_tokens."
            )
    stages = stages_until(trunk, plan, step)
    last, samples = plan.position(step)
    is_over = samples == plan.stages[last].samples
    current = plan.stages[last].name
    for name in [name for name in stages if name in own.stages]:
        before = with_batch(trunk, trunk.stages[name])
        now = with_batch(own, own.stages[name])
        fixed = FIXED if name == current and not is_over else (*FIXED, "tokens")
        for key in fixed:
            if getattr(before, key) != getattr(now, key):
                raise InputError(
                    f"recipe.stages.{name}.{key}={getattr(now, key)}: {where} trained this stage "
                    f"with {getattr(before, key)}. Restore this value, or give the stage another "
                    f"name, so that it begins after step {step}."
                )
    continues = current in own.stages and not is_over
    if continues:
        edition = own.stages[current].edition or trunk.stages[current].edition
        stages[current] = replace(with_batch(own, own.stages[current]), edition=edition)
    later: dict[str, Any] = {name: s for name, s in own.stages.items() if name not in stages}
    if not later and not continues:
        raise InputError(
            f"recipe.stages: {where} has trained all of these stages up to step {step}. Add a "
            "stage, as in '+recipe.stages.more={seq_len:2048,tokens:1e9}'."
        )
    inherited = len(stages) - continues
    return replace(own, stages=stages | later, atom_tokens=atom, inherited=inherited)


def stages_until(recipe: RecipeConfig, plan: StagePlan, step: int) -> dict[str, Any]:
    """Returns the stages that a run has begun after `step` steps, with the last one ended there."""
    last, samples = plan.position(step)
    begun = {
        stage.name: with_batch(recipe, recipe.stages[stage.name])
        for stage in plan.stages[: last + 1]
    }
    stage = plan.stages[last]
    if samples < stage.samples:
        config = begun[stage.name]
        begun[stage.name] = replace(
            config,
            tokens=samples * stage.seq_len,
            planned_tokens=config.planned_tokens or config.tokens,
        )
    return begun


def with_batch(recipe: RecipeConfig, stage: StageConfig) -> StageConfig:
    """Returns a stage with its batch size, which is that of the recipe unless it has its own."""
    return replace(
        stage, global_batch_tokens=stage.global_batch_tokens or recipe.global_batch_tokens
    )
