"""Ranges of hashes, by which the comparison of documents is cut into tasks.

A sorted table of 64-bit hashes is cut by their first bits, usually eight. A file with such a table
also records where each range begins, so that a task reads only its own part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RANGES = 256


def range_starts(hashes: NDArray[np.uint64], ranges: int = RANGES) -> NDArray[np.int64]:
    """Returns where each range begins in a sorted table of hashes, and at last its length.

    The number of ranges is a power of two.
    """
    bounds = np.arange(ranges, dtype=np.uint64) << np.uint64(65 - ranges.bit_length())
    return np.append(np.searchsorted(hashes, bounds), len(hashes))


def range_of_part(part: int, parts: int, ranges: int = RANGES) -> tuple[int, int]:
    """Returns the first range of a part and the one after its last, if there are `parts` parts."""
    return ranges * part // parts, ranges * (part + 1) // parts
