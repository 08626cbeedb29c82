"""Rules that set learning rate, batch, warm-up and beta2 of a run by the size of its model.

`olmo` has the constants of arXiv 2406.19146 as the ladder of OLMo-core uses them (its file
`wsds_chinchilla_run_configurator.py`): with N the parameters in blocks and head,

    learning rate = 0.0047 * (N / 108M)^(-1/3) / 2       halved for a constant rate before the decay
    batch         = 160 * 2048 tokens * (N / 108M)^(2/3)
    warm-up       = N tokens
    beta2         = 0.95, and 0.99 for batches below 524,288 tokens

Below 5M parameters the learning rate stays that of 5M. Models of 39k and 132k parameters, trained
on 400,000 tokens of the demo's code with AdamW, had the lowest losses at 0.006 and 0.003 (4.63 and
4.71), and 5.3 and more at 0.012 and 0.024; the rule would give 0.033 and 0.022.

`scaled` has the same exponents, but starts from learning rate and batch of the target's own
command. `transfer` keeps the target's learning rate and betas, for a parametrization in which the
best learning rate does not depend on the size (`model.parametrization=completep`), and scales
batch and warm-up as `scaled` does.
"""

from __future__ import annotations

from typing import NamedTuple

from model.config import ModelConfig
from model.flops import matmul_parameters
from pretrain.config import PretrainConfig

RULES = ("olmo", "scaled", "transfer")
"""The first is the default."""
REFERENCE_SIZE = 108e6
REFERENCE_RATE = 0.0047 / 2
REFERENCE_BATCH = 160 * 2048
RATE_EXPONENT, BATCH_EXPONENT = -1 / 3, 2 / 3
LEAST_SIZE_OF_RATE = 5e6
"""Number of parameters below which the learning rate no longer rises."""
LARGE_BATCH = 524_288
"""Tokens per batch from which beta2 is 0.95."""


class Settings(NamedTuple):
    """Settings of the optimizer and the batch that depend on the size of the model."""

    learning_rate: float
    batch_tokens: int
    warmup_tokens: int
    beta2: float

    def overrides(self) -> list[str]:
        """Returns the overrides of `python -m pretrain`, without those of the schedule."""
        return [
            f"optim.learning_rate={self.learning_rate:.4g}",
            "optim.min_learning_rate=0",
            f"optim.warmup_tokens={self.warmup_tokens}",
            f"optim.beta2={self.beta2}",
            f"recipe.global_batch_tokens={self.batch_tokens}",
        ]


def settings_of(
    rule: str,
    model: ModelConfig,
    target: PretrainConfig,
    samples: int,
    seq_len: int,
    rate_factor: float = 1.0,
) -> Settings:
    """Returns the settings that a rule gives for a model.

    Args:
        rule: One of RULES.
        model: The model of the run.
        target: Settings of the target's own command.
        samples: Sequences of which each batch is a multiple, the number of data-parallel ranks.
        seq_len: Tokens per sequence.
        rate_factor: Factor on the learning rate.
    """
    size = matmul_parameters(model)
    growth = size / matmul_parameters(target.model)
    if rule == "olmo":
        rated = max(size, LEAST_SIZE_OF_RATE)
        rate = REFERENCE_RATE * (rated / REFERENCE_SIZE) ** RATE_EXPONENT
        batch = REFERENCE_BATCH * (size / REFERENCE_SIZE) ** BATCH_EXPONENT
        beta2 = 0.95 if batch >= LARGE_BATCH else 0.99
    else:
        batch = target.recipe.global_batch_tokens * growth**BATCH_EXPONENT
        rate, beta2 = target.optim.learning_rate, target.optim.beta2
        if rule == "scaled":
            rate *= growth**RATE_EXPONENT
    unit = samples * seq_len
    return Settings(
        learning_rate=rate * rate_factor,
        batch_tokens=max(1, round(batch / unit)) * unit,
        warmup_tokens=size,
        beta2=beta2,
    )
