"""Intervals of what a sample tells about a whole.

All intervals are meant to contain the truth in 99 of 100 samples. Documents are not drawn one by
one but in groups that resemble each other, so shares are computed with the effective number of
documents of Kish (1965), which assumes that all documents of a group are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 2.576
"""Number of standard deviations on each side, for 99%."""
HEAVY = 10
"""Size from which a group of duplicates in the part that was read is taken as seen in proportion;
smaller groups may grow with the number of pairs."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper bound."""

    low: float
    value: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Returns the interval of `factor` times the quantity."""
        return Interval(self.low * factor, self.value * factor, self.high * factor)

    def minus_from(self, whole: float) -> Interval:
        """Returns the interval of `whole` without the quantity."""
        return Interval(whole - self.high, whole - self.value, whole - self.low)

    def widened(self, relative: float) -> Interval:
        """Returns the interval with a further independent error, relative to the estimate."""
        extra = self.value * relative
        return Interval(
            max(0.0, self.value - math.hypot(self.value - self.low, extra)),
            self.value,
            self.value + math.hypot(self.high - self.value, extra),
        )


def effective_number(groups: NDArray[np.uint64], weights: ArrayLike | None = None) -> float:
    """Returns the effective number of documents, given the group of each and its weight."""
    if not len(groups):
        return 0.0
    _, inverse = np.unique(groups, return_inverse=True)
    weight = np.ones(len(groups)) if weights is None else np.asarray(weights, float)
    total = np.bincount(inverse, weight)
    squares = float((total**2).sum())
    return float(total.sum()) ** 2 / squares if squares else 0.0


def share(hits: float, of: float, effective: float, drawn: float, guess: float = 0.5) -> Interval:
    """Returns the interval of a share that was `hits / of` in a sample (Wilson, 1927).

    Args:
        hits: weight of the documents in the sample that have a property.
        of: weight of all documents in the sample; 0 if there are none, so that nothing is known.
        effective: effective number of documents in the sample.
        drawn: fraction of the whole that is in the sample. The interval of a sample that is the
            whole has no width.
        guess: the value if nothing is known.
    """
    if of <= 0:
        return Interval(0.0, guess, 1.0)
    p = min(1.0, hits / of)
    if drawn >= 1:
        return Interval(p, p, p)
    n = effective / (1 - drawn)
    z2 = Z * Z / n
    middle = (p + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return Interval(max(0.0, min(p, middle - half)), p, min(1.0, max(p, middle + half)))


def total(parts: list[tuple[float, Interval]]) -> Interval:
    """Returns the sum of independent intervals, each given with the size of its stratum."""
    value = sum(size * part.value for size, part in parts)
    below = math.hypot(*(size * (part.value - part.low) for size, part in parts))
    above = math.hypot(*(size * (part.high - part.value) for size, part in parts))
    return Interval(max(0.0, value - below), value, value + above)


def share_of_whole(dropped: Interval, groups: list[int], documents: int, read: float) -> Interval:
    """Returns the share of duplicates in a whole of which only a fraction was read.

    Nothing narrower is known without assumptions (Charikar and others, 2000). Units of the part
    that was read must be drawn at random. The lower bound is that further text adds new
    documents at most at the rate of those that are alone in the part read, which falls as more is
    read. The upper bound is that every pair of a small group stands for `1 / read^2` pairs of the
    whole, and no group has more duplicates than pairs. Groups of HEAVY or more documents grow in
    proportion.

    Args:
        dropped: share of duplicates in the part that was read.
        groups: sizes of the groups of duplicates that were found in `documents` documents.
        documents: number of documents in which the groups were found.
        read: fraction of the whole that was read.
    """
    if read >= 1 or not documents:
        return dropped
    sizes = np.array(groups, float)
    light, heavy = sizes[sizes < HEAVY], float(sizes[sizes >= HEAVY].sum()) / documents
    alone = max(0.0, documents - float(sizes.sum())) / documents
    alone += Z * math.sqrt((alone * (1 - alone) + 1 / documents) / documents)
    pairs = light * (light - 1) / 2
    most = float(pairs.sum()) + Z * math.sqrt(float((pairs**2).sum()) + 1) + Z
    high = min(heavy + most / documents / read, 1 - read * (1 - dropped.high))
    high = min(1.0, max(dropped.high, high))
    low = 1 - read * (1 - dropped.low) - min(1.0, alone) * (1 - read)
    low = min(high, max(0.0, low))
    return Interval(low, (low + high) / 2, high)
