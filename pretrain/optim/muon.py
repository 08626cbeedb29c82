"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal, for the
matrices of the blocks; AdamW for embedding, head and norms.

On split weights each update is that of the whole matrix: it is gathered, every rank makes it
orthogonal and keeps its part. `torch.optim.Muon` lets DTensor split the Newton-Schulz iteration
instead; its sums over ranks are then rounded to bfloat16 in parts, and the iteration makes of that
updates that differ between layouts by percents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the source above: fast, to singular values of 0.7 to
1.2 instead of 1."""


class Muon(torch.optim.AdamW):
    """Groups with muon=True are matrices that take Muon's step, the others AdamW's. `found_inf`, a
    0-d tensor, leaves a step out where it is 1, without waiting for the device, as AdamW does.

    An update of Muon is scaled by 0.2 * sqrt(max(rows, columns)), which gives it the root mean
    square that AdamW's usually has (Moonlight, arXiv 2502.16982, section 2.2): one learning rate
    and one weight decay serve both.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        steps: int,
        fused: bool,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        self.momentum = momentum
        self.steps = steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; the matrices lose their gradients, so that AdamW passes them over."""
        assert closure is None
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group["lr"], group["weight_decay"])
                        parameter.grad = None
        adamw = torch.optim.AdamW.step
        while getattr(adamw, "hooked", False):  # once an AdamW was built: hooks would run twice
            adamw = adamw.__wrapped__  # type: ignore[attr-defined]
        adamw(self)

    def _update(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        keep: Tensor | float = 1.0
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            keep = 1 - found_inf
            _local(gradient).masked_fill_(found_inf.bool(), 0)  # NaN times 0 would be NaN
        momentum = state["momentum"]
        _local(momentum).lerp_(_local(gradient), (1 - self.momentum) * keep)
        update = gradient.lerp(momentum, self.momentum)  # Nesterov's
        part = orthogonal(_whole(update), self.steps)
        if isinstance(update, DTensor):
            mesh, placements = update.device_mesh, update.placements
            part = distribute_tensor(part, mesh, placements, src_data_rank=None).to_local()
        target = _local(parameter)
        target.mul_(1 - rate * weight_decay * keep)
        target.add_(part * (-rate * 0.2 * math.sqrt(max(parameter.shape)) * keep))


def _local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """The matrix (rows, columns) with its singular values brought near 1, by a Newton-Schulz
    iteration: in bfloat16 on a GPU, else in float32."""
    a, b, c = COEFFICIENTS
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32
    x = matrix.to(dtype)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype).contiguous()
