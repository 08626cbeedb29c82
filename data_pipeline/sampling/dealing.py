"""Deals the samples of a step to any number of data-parallel ranks.

Every rank runs the same number of micro-batches of the same shape, since all ranks take part in
every collective. If the samples do not divide evenly, blank samples fill the last rows. They have
no targets, so the summed loss and its gradient are those of the real samples alone.

Two examples with 72 samples and 16 ranks:

    at most 8 rows    each rank has 4 or 5 samples, and runs one micro-batch of 5 rows;
                      80 rows are computed, 8 of which are blank
    at most 4 rows    each rank runs 2 micro-batches of 3 rows; 24 of 96 rows are blank
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.sampling.recipe import Level, StagePlan

REPORTED_BLANK_FRACTION = 0.03
"""Fraction of blank tokens above which `blank_note` returns a warning."""


@dataclass(frozen=True)
class Deal:
    """Distribution of the samples of a step over data-parallel ranks.

    Attributes:
        samples: Number of samples in the step.
        ranks: Number of ranks.
        rows: Rows per micro-batch.
        micro_batches: Micro-batches per rank.
    """

    samples: int
    ranks: int
    rows: int
    micro_batches: int

    @classmethod
    def of(cls, samples: int, ranks: int, max_rows: int) -> Deal:
        """Returns the deal with the fewest micro-batches of at most `max_rows` rows.

        Among those, it is the one with the fewest rows per micro-batch. On average, a micro-batch
        then has less than one blank row.
        """
        share = -(-samples // ranks)
        micro_batches = -(-share // max_rows)
        return cls(samples, ranks, -(-share // micro_batches), micro_batches)

    def share(self, rank: int) -> range:
        """Returns the samples of a rank, counted from the first sample of the step."""
        return range(rank * self.samples // self.ranks, (rank + 1) * self.samples // self.ranks)

    @property
    def computed(self) -> int:
        """Number of rows that all ranks together compute, including blank rows."""
        return self.ranks * self.micro_batches * self.rows

    @property
    def blank_share(self) -> float:
        """Fraction of the computed rows that are blank."""
        return 1 - self.samples / self.computed


def deal_step(plan: StagePlan, step: int, ranks: int, micro_batch_tokens: int) -> Deal:
    """Returns how a step's samples are dealt to ranks, in micro-batches of a maximum size."""
    max_rows = max(1, micro_batch_tokens // plan.at(step).seq_len)
    return Deal.of(plan.level(step).samples_per_step, ranks, max_rows)


def deals(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> Iterator[tuple[Level, Deal]]:
    """Yields each level of a plan that the run trains itself, with the deal of its steps."""
    for level in plan.own_levels:
        yield level, deal_step(plan, level.first_step, ranks, micro_batch_tokens)


def micro_batch_sizes(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> dict[Level, int]:
    """Returns the number of tokens per micro-batch in each level of a plan."""
    return {
        level: deal.rows * plan.stages[level.stage].seq_len
        for level, deal in deals(plan, ranks, micro_batch_tokens)
    }


def blank_share(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> float:
    """Returns the fraction of the tokens computed in a plan that belong to blank samples."""
    computed = sum(
        level.steps * deal.computed * plan.stages[level.stage].seq_len
        for level, deal in deals(plan, ranks, micro_batch_tokens)
    )
    real = sum(level.steps * level.tokens_per_step for level in plan.own_levels)
    return 1 - real / computed


def blank_note(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> str | None:
    """Returns a warning if more than 3% of the computed tokens are blank, else None."""
    whole = blank_share(plan, ranks, micro_batch_tokens)
    if whole <= REPORTED_BLANK_FRACTION:
        return None
    level, deal = max(deals(plan, ranks, micro_batch_tokens), key=lambda pair: pair[1].blank_share)
    stage = plan.stages[level.stage]
    unit = math.lcm(*(stage.seq_len for stage in plan.own_stages)) * ranks
    fitting = max(1, round(level.tokens_per_step / unit)) * unit
    return (
        f"{whole:.1%} of the computed sequences are blank, because the batch cannot be divided "
        f"evenly among the ranks (stage '{stage.name}': {deal.samples} samples per step fill "
        f"{deal.computed} rows on {ranks} data-parallel ranks, {deal.blank_share:.1%} blank). Use "
        f"fewer ranks, or recipe.global_batch_tokens={fitting}."
    )
