"""Orthogonalizes matrices with a Newton-Schulz iteration, for Muon and its variants.

Each iteration applies an odd polynomial a x + b x^3 + c x^5 to the singular values. It consists of
three batched matrix products, whose additions happen inside the products (`baddbmm`), so that
torch.compile would have nothing left to fuse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

JORDAN = (3.4445, -4.7750, 2.0315)
"""The polynomial of Jordan et al. (2024, kellerjordan.github.io/posts/muon), for all iterations.

With it, the iteration converges fast, but to singular values between 0.7 and 1.2 instead of 1."""
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""The polynomials of Polar Express (arXiv 2505.16932), which is the best choice for each iteration.

They are made for singular values between 0.001 and 1. The last one repeats."""
MARGIN = 1.01
"""Factor by which Polar Express assumes that rounding enlarges the singular values."""
COEFFICIENTS = ("jordan", "polar_express")


def polynomials(name: str, steps: int) -> list[tuple[float, float, float]]:
    """Returns the coefficients (a, b, c) of each iteration. name: one of COEFFICIENTS."""
    if name == "jordan":
        return [JORDAN] * steps
    last = len(POLAR_EXPRESS) - 1
    found = [POLAR_EXPRESS[min(step, last)] for step in range(steps)]
    # Dividing the argument by the margin keeps every polynomial in the range it was made for. The
    # first one is divided twice, because the norm of the matrix is rounded as well.
    margins = [MARGIN**2] + [MARGIN] * (last - 1) + [1.0] * steps
    return [
        (a / margin, b / margin**3, c / margin**5)
        for (a, b, c), margin in zip(found, margins, strict=False)
    ]


def orthogonalized(matrices: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Returns the matrices (count, rows, columns) with singular values close to 1.

    The products are computed in the dtype of the matrices.
    """
    x = matrices.mT if (tall := matrices.shape[1] > matrices.shape[2]) else matrices
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / norms.clamp(min=1e-7)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    return x.mT if tall else x


def flops(rows: int, columns: int, steps: int) -> int:
    """Returns the floating-point operations for one matrix: 2 per multiplication and addition."""
    short, long = sorted((rows, columns))
    return steps * (4 * short * short * long + 2 * short**3)
