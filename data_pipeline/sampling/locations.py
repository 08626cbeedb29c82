"""Arrays with the locations of samples in a corpus, and with the samples that use a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SampleLocations:
    """Locations of samples in the streams of their sources.

    Attributes:
        source: (n,) index in `SampleOrder.sources`.
        epoch: (n,) epoch of the source, counted from 0.
        start: (n,) token offset in the source's stream.
    """

    source: Ints
    epoch: Ints
    start: Ints

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: Any) -> SampleLocations:
        return SampleLocations(self.source[part], self.epoch[part], self.start[part])

    @classmethod
    def empty(cls, shape: tuple[int, ...] = (0,)) -> SampleLocations:
        """Returns locations of a given shape that are all 0. By default there are none."""
        return cls(*np.zeros((3, *shape), np.int64))


@dataclass(frozen=True)
class TokenUses:
    """Samples that contain given tokens of a source, in training order. Each array is (n,)."""

    stage: Ints
    sample: Ints
    epoch: Ints
    start: Ints
