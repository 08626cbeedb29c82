"""The weighted sum of checkpoints, computed one tensor at a time in float64.

The memory needed is 12 bytes per element of the largest tensor: the sum in float64, and the float32
tensor of one checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pretrain.checkpoints.read import Tensors

PART_ELEMENTS = 1 << 20
"""Number of elements that are converted to float64 at a time."""


class Average:
    """The average of the tensors of several checkpoints, which must have the same shapes."""

    def __init__(self, checkpoints: Sequence[Tensors], weights: Sequence[float]) -> None:
        self.checkpoints, self.weights = checkpoints, weights
        self.shapes, self.dtypes = checkpoints[0].shapes, checkpoints[0].dtypes

    def read(self, name: str) -> Tensor:
        """Returns the average of one tensor, in the dtype of the first checkpoint."""
        total = torch.zeros(self.shapes[name], dtype=torch.float64)
        for checkpoint, weight in zip(self.checkpoints, self.weights, strict=True):
            value = checkpoint.read(name)
            parts = (tensor.flatten().split(PART_ELEMENTS) for tensor in (total, value))
            for part, added in zip(*parts, strict=True):
                part.add_(added.double(), alpha=weight)
            del value
        return total.to(self.dtypes[name])

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and the average of each tensor."""
        return ((name, self.read(name)) for name in self.shapes)
