"""Muon for the matrices of the blocks, AdamW for embedding, head and norms.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each
matrix and takes that as the update.

The update of a sharded matrix is that of the whole matrix: the matrix is gathered, every rank makes
it orthogonal and keeps its shard. `torch.optim.Muon` lets DTensor shard the Newton-Schulz iteration
instead; its sums over ranks are then rounded to bfloat16 in parts, and the iteration turns that
into updates that differ between layouts by percents.
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
"""Coefficients of the quintic Newton-Schulz iteration, from the source above. They converge fast,
to singular values between 0.7 and 1.2 instead of 1."""
UPDATE_RMS = 0.2
"""Root mean square that an update of AdamW usually has (Moonlight, arXiv 2502.16982, section 2.2).
Updates of that size let matrices and other parameters share a learning rate and a weight decay."""


@dataclass(frozen=True)
class MuonOptions:
    """Options of Muon. ns_steps: iterations of Newton-Schulz."""

    momentum: float = 0.95
    ns_steps: int = 5


class Muon(torch.optim.AdamW):
    """Updates the groups with muon=True by Muon and the others by AdamW.

    `found_inf`, a 0-d tensor, skips a step where it is 1, without waiting for the device, as in
    fused AdamW. A subclass changes the update of a matrix by overriding `init_state` and
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
        """Returns the initial state of a matrix; tensors like the parameter are sharded like it."""
        # AdamW expects `step` in every state that it loads.
        return {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}

    def direction(
        self, update: Tensor, state: dict[str, Tensor], keep: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Returns the direction of a step and the factor that gives it UPDATE_RMS.

        update: the whole momentum (rows, columns), the same on every rank. keep: 0 where the step
        is skipped and the state must not change, else 1.
        """
        return orthogonal(update, self.steps), UPDATE_RMS * math.sqrt(max(update.shape))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step and drops the gradients of the matrices, so that AdamW skips them."""
        assert closure is None
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group["lr"], group["weight_decay"])
                        parameter.grad = None
        adamw_step = torch.optim.AdamW.step
        # torch wraps the method once an AdamW was built; its hooks would run twice.
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
        update = gradient.lerp(momentum, self.momentum)  # Nesterov's
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        shard, factor = self.direction(whole, state, keep)
        if isinstance(update, DTensor):
            mesh, placements = update.device_mesh, update.placements
            shard = distribute_tensor(shard, mesh, placements, src_data_rank=None).to_local()
        target = _local(parameter)
        target.mul_(1 - rate * weight_decay * keep)
        target.add_(shard * (-rate * factor * keep))


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Returns the matrix (rows, columns) with its singular values brought near 1.

    A Newton-Schulz iteration, in bfloat16 on a GPU, else in float32.
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
    return Muon(
        split_matrices(groups),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        momentum=options.momentum,
        steps=options.ns_steps,
        fused=True,
    )


def split_matrices(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Returns each group as two: its matrices of the blocks with muon=True, and the rest."""
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
    """Returns the bytes of one float32 momentum for a matrix, and of AdamW's state for the rest."""
    return 4 * held if is_block_matrix(name, len(shape)) else adamw.state_bytes(name, shape, held)


def _local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


OPTIMIZER = Optimizer(MuonOptions, build, state_bytes)
