"""How the samples of one step are dealt to data-parallel ranks that may be any number.

Every rank runs as many micro-batches as the others, of one shape, since all take part in every
collective. Where the samples do not come out even, blank samples fill the last rows: they have no
targets, so that the summed loss and its gradient are those of the real samples alone.

    72 samples, 16 ranks, at most 8 rows: ranks have 4 or 5 samples, in one micro-batch of 5 rows;
    80 rows are computed, 8 of them blank.
    72 samples, 16 ranks, at most 4 rows: 2 micro-batches of 3 rows; 24 of 96 rows are blank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.sampling.recipe import Level, StagePlan

BLANKS_NOTED = 0.03
"""Share of blank samples above which a sentence says what they cost."""


@dataclass(frozen=True)
class Deal:
    """The samples of a step over `ranks`: `micro_batches` of `rows` samples on each of them."""

    samples: int
    ranks: int
    rows: int
    micro_batches: int

    @classmethod
    def of(cls, samples: int, ranks: int, most_rows: int) -> Deal:
        """Returns the deal with the fewest micro-batches of at most `most_rows`, and of these the
        one with the fewest rows: there are fewer blank rows than micro-batches on all ranks."""
        share = -(-samples // ranks)
        micro_batches = -(-share // most_rows)
        return cls(samples, ranks, -(-share // micro_batches), micro_batches)

    def share(self, rank: int) -> range:
        """Returns the samples of a rank, counted from the step's first; ranks differ by one."""
        return range(rank * self.samples // self.ranks, (rank + 1) * self.samples // self.ranks)

    @property
    def computed(self) -> int:
        """Rows that all ranks compute, the blank ones among them."""
        return self.ranks * self.micro_batches * self.rows

    @property
    def blank_share(self) -> float:
        """Share of the computed rows that are blank."""
        return 1 - self.samples / self.computed


def deal_step(plan: StagePlan, step: int, ranks: int, micro_batch_tokens: int) -> Deal:
    """Returns how a step's samples are dealt. micro_batch_tokens: of a rank at most."""
    most_rows = max(1, micro_batch_tokens // plan.at(step).seq_len)
    return Deal.of(plan.level(step).samples_per_step, ranks, most_rows)


def deals(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> Iterator[tuple[Level, Deal]]:
    """Yields how the steps of each level of a plan are dealt."""
    for level in plan.levels:
        yield level, deal_step(plan, level.first_step, ranks, micro_batch_tokens)


def micro_batch_sizes(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> dict[Level, int]:
    """Returns the tokens of the micro-batches of each level, at most `micro_batch_tokens`."""
    return {
        level: deal.rows * plan.stages[level.stage].seq_len
        for level, deal in deals(plan, ranks, micro_batch_tokens)
    }


def blank_share(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> float:
    """Returns the share of blank tokens in all that a plan computes."""
    computed = sum(
        level.steps * deal.computed * plan.stages[level.stage].seq_len
        for level, deal in deals(plan, ranks, micro_batch_tokens)
    )
    return 1 - plan.total_tokens / computed


def blank_note(plan: StagePlan, ranks: int, micro_batch_tokens: int) -> str | None:
    """Returns a sentence where blank samples cost more than BLANKS_NOTED of the plan."""
    whole = blank_share(plan, ranks, micro_batch_tokens)
    if whole <= BLANKS_NOTED:
        return None
    level, deal = max(deals(plan, ranks, micro_batch_tokens), key=lambda pair: pair[1].blank_share)
    stage = plan.stages[level.stage]
    unit = math.lcm(*(stage.seq_len for stage in plan.stages)) * ranks
    fitting = max(1, round(level.tokens_per_step / unit)) * unit
    return (
        f"{whole:.1%} of the sequences that are computed are blank (stage '{stage.name}': "
        f"{deal.samples} of a step in {deal.computed} rows of {ranks} data-parallel ranks, "
        f"{deal.blank_share:.1%}), since batches and ranks do not come out even: fewer ranks, or "
        f"recipe.global_batch_tokens={fitting}, would leave none."
    )
