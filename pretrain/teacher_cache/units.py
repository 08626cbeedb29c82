"""The units of a cache: samples that are taught together, and stored in one file.

A unit has the samples of a stage from a multiple of its size on, so which samples a unit has, and
which micro-batches its teacher computes, does not depend on the processes that share the work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan

Ranges = list[tuple[int, int]]
"""The samples [first, end) of each stage; an empty range for a stage that is not taught."""


@dataclass(frozen=True)
class Unit:
    """Consecutive samples of a stage: [first, first + samples)."""

    stage: int
    first: int
    samples: int

    @property
    def file(self) -> str:
        """Returns the path of the unit's file in the cache, without suffix."""
        return f"stage_{self.stage}/{self.first:012}"


def units_of(plan: StagePlan, ranges: Ranges, unit_tokens: int) -> list[Unit]:
    """Returns the units of samples, each of at most `unit_tokens` tokens or one sample."""
    found = []
    for stage, (first, end) in zip(plan.stages, ranges, strict=True):
        size = max(1, unit_tokens // stage.seq_len)
        for start in range(first - first % size, end, size):
            begin, stop = max(start, first), min(start + size, end)
            found.append(Unit(stage.index, begin, stop - begin))
    return found


def read_steps(text: str | None, total: int) -> range:
    """Returns the steps, counted from 0, that `a..b` names with both ends and counted from 1.

    Raises InputError if the text has another form, or the plan has fewer steps.
    """
    if text is None:
        return range(total)
    matched = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    first, last = map(int, matched.groups()) if matched else (0, 0)
    if not 1 <= first <= last <= total:
        raise InputError(
            f"steps={text}: expected a range such as 1..{total}, the steps of this recipe."
        )
    return range(first - 1, last)


def samples_of(plan: StagePlan, steps: range) -> Ranges:
    """Returns the samples of each stage in some consecutive steps."""
    ranges: Ranges = []
    for stage in plan.stages:
        first, end = max(steps.start, stage.first_step), min(steps.stop, stage.end_step)
        if first < end:
            ranges.append((plan.samples_at(first).start, plan.samples_at(end - 1).stop))
        else:
            ranges.append((0, 0))
    return ranges
