"""Muon for the matrices of the blocks, and AdamW for embedding, head and norms.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each
matrix and uses the result as the update.

A sharded matrix gets the same update as an unsharded one: its momentum is all-gathered, and every
rank orthogonalizes the whole matrix and keeps its shard. `torch.optim.Muon` instead lets DTensor
shard the Newton-Schulz iteration. Its partial sums are then rounded to bfloat16 on each rank, and
the iteration amplifies these errors, so updates can differ by 3% between layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.config import OptimConfig
from pretrain.optim import Optimizer, ParameterGroup, adamw, is_block_matrix

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration, from Jordan et al. (2024).

With them, it converges fast, but to singular values between 0.7 and 1.2 instead of 1."""
UPDATE_RMS = 0.2
"""Typical root mean square of an AdamW update (Moonlight, arXiv 2502.16982, section 2.2).

Updates of this size let matrices and other parameters share a learning rate and a weight decay."""


@dataclass(frozen=True)
class MuonOptions:
    """Options of Muon. ns_steps: number of Newton-Schulz iterations."""

    momentum: float = 0.95
    ns_steps: int = 5


class Muon(torch.optim.AdamW):
    """Updates the groups with muon=True by Muon, and the others by AdamW.

    A step is skipped if the 0-d tensor `found_inf` is 1, without waiting for the device, as in
    fused AdamW. Subclasses change the update of a matrix by overriding `init_state` and
    `direction`.
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

    def init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Returns the initial state of a matrix. The momentum is sharded like the parameter."""
        # AdamW expects `step` in every state that it loads.
        return {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}

    def direction(
        self, update: Tensor, state: dict[str, Tensor], keep: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Returns the direction of a step, and the factor that scales its RMS to UPDATE_RMS.

        update: the whole momentum (rows, columns), the same on every rank.
        keep: 0 if the step is skipped and the state must not change, else 1.
        """
        return orthogonal(update, self.steps), UPDATE_RMS * math.sqrt(max(update.shape))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step, and clears the gradients of the matrices so that AdamW skips them."""
        assert closure is None
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group["lr"], group["weight_decay"])
                        parameter.grad = None
        adamw_step = torch.optim.AdamW.step
        # torch wraps this method when an AdamW is built. Calling the wrapper would run hooks twice.
        while getattr(adamw_step, "hooked", False):
            adamw_step = adamw_step.__wrapped__  # type: ignore[attr-defined]
        adamw_step(self)

    def _update(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(self.init_state(parameter))
        state["step"] += 1
        keep: Tensor | float = 1.0
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            keep = 1 - found_inf
            _local(gradient).masked_fill_(found_inf.bool(), 0)  # NaN times 0 would be NaN
        momentum = state["momentum"]
        _local(momentum).lerp_(_local(gradient), (1 - self.momentum) * keep)
        update = gradient.lerp(momentum, self.momentum)  # Nesterov momentum
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        shard, factor = self.direction(whole, state, keep)
        if isinstance(update, DTensor):
            mesh, placements = update.device_mesh, update.placements
            shard = distribute_tensor(shard, mesh, placements, src_data_rank=None).to_local()
        target = _local(parameter)
        target.mul_(1 - rate * weight_decay * keep)
        target.add_(shard * (-rate * factor * keep))


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Returns the matrix (rows, columns) with singular values close to 1.

    This is a Newton-Schulz iteration, in bfloat16 on a GPU and in float32 elsewhere.
    """
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


def build(
    groups: list[ParameterGroup], config: OptimConfig, options: MuonOptions
) -> torch.optim.Optimizer:
    """Returns Muon for the matrices of the blocks and AdamW for the rest."""
    return Muon(split_matrices(groups), **settings(config, options))


def settings(config: OptimConfig, options: MuonOptions) -> dict[str, Any]:
    """Returns the arguments of `Muon` that come from the config."""
    return {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "momentum": options.momentum,
        "steps": options.ns_steps,
        "fused": True,
    }


def split_matrices(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Splits each group in two: its block matrices with muon=True, the rest with muon=False."""
    found = []
    for group in groups:
        for muon in (False, True):
            parameters = {
                name: parameter
                for name, parameter in group.parameters.items()
                if is_block_matrix(name, parameter.ndim) == muon
            }
            if parameters:
                part = ParameterGroup(group.lr_scale, group.weight_decay, parameters)
                found.append(part.as_dict(muon=muon))
    return found


def state_bytes(name: str, shape: tuple[int, ...], held: int) -> int:
    """Returns the bytes of a float32 momentum for a block matrix, or else of AdamW's state."""
    return 4 * held if is_block_matrix(name, len(shape)) else adamw.state_bytes(name, shape, held)


def _local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


OPTIMIZER = Optimizer(MuonOptions, build, state_bytes)
