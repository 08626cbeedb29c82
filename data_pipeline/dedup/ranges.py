"""Ranges of hashes, by which the comparison of documents is cut into tasks.

A sorted table of 64-bit hashes is cut by their first byte. A file with such a table also records
where each range begins, so that a task reads only its own part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RANGES = 256


def range_starts(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns where each range begins in a sorted table of hashes, and at last its length."""
    bounds = np.arange(RANGES, dtype=np.uint64) << np.uint64(56)
    return np.append(np.searchsorted(hashes, bounds), len(hashes))


def range_of_part(part: int, parts: int) -> tuple[int, int]:
    """Returns the first range of a part and the one after its last, if there are `parts` parts."""
    return RANGES * part // parts, RANGES * (part + 1) // parts
