"""Computes which source serves atom t of a stage, in closed form and in integers.

An atom is a run of tokens of a source, the unit that the order of samples permutes.

The first t atoms are divided among the sources one after the other: the first source takes
round(t * w_1), the next takes its share of the rest, and so on. When t grows by 1, each count grows
by 0 or 1, and the counts sum to t. So exactly one count grows, and its source serves atom t. At
every t, the counts match the weights to within about one atom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.sampling.locations import Ints

UNITS = 2**24
"""Weights are rounded to multiples of 1 / UNITS. t * UNITS fits into 63 bits up to 5e11 atoms."""


class Mixture:
    """A mixture of sources with given weights.

    Args:
        weights: (sources,) weights, none negative and not all 0; they need not sum to 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.units = _whole_units(weights)

    def counts(self, t: Ints) -> Ints:
        """Returns how many of the first t atoms each source serves, (sources, *t.shape)."""
        rest = np.asarray(t, np.int64).copy()
        left = UNITS
        counts = np.zeros((len(self.units), *rest.shape), np.int64)
        for source, units in enumerate(self.units):
            if units:
                counts[source] = (rest * units + left // 2) // left
                rest -= counts[source]
                left -= units
        return counts

    def locate(self, t: Ints) -> tuple[Ints, Ints]:
        """Returns the source of each atom t, and the number of earlier atoms of that source."""
        before = self.counts(t)
        source = np.argmax(self.counts(t + 1) - before, axis=0)
        return source, np.take_along_axis(before, source[None], axis=0)[0]

    def position(self, source: int, number: Ints) -> Ints:
        """Inverts `locate`: returns the atom t at which a source serves its atom `number`, from 0.

        The source must have a weight above 0. The rounding in `counts` is inverted first for this
        source and then for each source before it. Each inversion takes the smallest t that gives
        the required count.
        """
        units = self.units[source]
        before = [u for u in self.units[:source] if u]
        left = UNITS - sum(before)
        number = np.asarray(number, np.int64)
        place = -((left // 2 - (number + 1) * left) // units) - 1
        for share in reversed(before):
            left += share
            place = (place * left + left // 2) // (left - share)
        return place


def _whole_units(weights: Sequence[float]) -> list[int]:
    """Rounds weights to integers that sum to UNITS, with the method of largest remainders.

    A weight above 0 gets at least one unit.
    """
    total = sum(weights)
    exact = [weight / total * UNITS for weight in weights]
    units = [max(1, int(share)) if share > 0 else 0 for share in exact]
    by_remainder = sorted(range(len(units)), key=lambda i: (units[i] - exact[i], i))
    missing = UNITS - sum(units)
    if missing < 0:  # tiny weights were raised to one unit at the cost of the largest
        units[max(range(len(units)), key=lambda i: units[i])] += missing
    else:
        for i in [i for i in by_remainder if exact[i] > 0][:missing]:
            units[i] += 1
    return units
