"""The settings of our own side: those of its command line, with a plan of other length."""

from __future__ import annotations

from collections.abc import Sequence

from conf.entry import compose_settings
from pretrain.__main__ import COMMANDS
from pretrain.config import PretrainConfig


def settings_of(overrides: Sequence[str]) -> PretrainConfig:
    """Returns the settings that `python -m pretrain` has with the overrides."""
    settings: PretrainConfig = compose_settings(COMMANDS["train"], [*overrides, "run_dir=unused"])
    return settings


def stretched(overrides: Sequence[str], steps: int) -> list[str]:
    """Returns overrides for a run of so many steps.

    Stages, warm-up and decay keep their shares of the tokens.
    """
    settings = settings_of(overrides)
    recipe, optim = settings.recipe, settings.optim
    batch = recipe.global_batch_tokens
    planned = {name: stage.tokens for name, stage in recipe.stages.items()}
    share = steps * batch / sum(planned.values())
    of_stage = {name: max(1, round(tokens * share / batch)) for name, tokens in planned.items()}
    *_, last = of_stage
    of_stage[last] += steps - sum(of_stage.values())
    found = [f"recipe.stages.{name}.tokens={count * batch}" for name, count in of_stage.items()]
    warm_up = max(1, round(optim.warmup_tokens * share / batch))
    found.append(f"optim.warmup_tokens={warm_up * batch}")
    if optim.decay_tokens:
        found.append(
            f"optim.decay_tokens={max(1, round(optim.decay_tokens * share / batch)) * batch}"
        )
    return found
