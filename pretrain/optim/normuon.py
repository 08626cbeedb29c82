"""NorMuon (arXiv 2510.05491): Muon whose orthogonal update is normalized row by row.

Newton-Schulz equalizes the singular values but not the norms of the rows, so some neurons get much
larger updates than others. Dividing each row by the root of a running mean of its squares, as Adam
does per element, evens them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.config import OptimConfig
from pretrain.optim import Optimizer, ParameterGroup, is_block_matrix, muon
from pretrain.optim.muon import UPDATE_RMS, Muon, MuonOptions, split_matrices
from pretrain.optim.owners import combine

EPS = 1e-8


@dataclass(frozen=True)
class NorMuonOptions(MuonOptions):
    """Options of NorMuon. row_beta: decay of the running mean of a row's squares."""

    row_beta: float = 0.95


class NorMuon(Muon):
    """Updates block matrices by NorMuon, and all other parameters by AdamW."""

    options: NorMuonOptions

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._means: dict[Tensor, Tensor] = {}

    def init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Returns Muon's state and each row's mean square (rows,), unsharded on every rank."""
        rows = torch.zeros(parameter.shape[0], dtype=parameter.dtype, device=parameter.device)
        return super().init_state(parameter) | {"row_squares": rows}

    def direction(self, momenta: Tensor, parameters: list[Tensor]) -> Tensor:
        """Returns the normalized directions of matrices that this rank owns, with an RMS of 1."""
        matrices = super().direction(momenta, parameters).float()
        means = matrices.square().mean(2)
        self._means |= dict(zip(parameters, means, strict=True))
        before = torch.stack([self.state[p]["row_squares"] for p in parameters])
        squares = before.lerp(means, 1 - self.options.row_beta)
        matrices = matrices / (squares.sqrt() + EPS)[:, :, None]
        rms = matrices.square().mean((1, 2), keepdim=True).sqrt()
        return (matrices / rms.clamp(min=EPS)).to(momenta.dtype)

    def scale(self, rows: int, columns: int) -> float:
        """Returns the factor that scales the RMS of a direction to UPDATE_RMS."""
        return UPDATE_RMS

    def finish_step(self, parameters: list[Tensor], keep: Tensor | float) -> None:
        """Updates the mean squares of all rows on every rank, with those that the owners have."""
        states = [self.state[parameter]["row_squares"] for parameter in parameters]
        flat = torch.zeros(sum(map(len, states)), dtype=states[0].dtype, device=states[0].device)
        means = flat.split([len(state) for state in states])
        for parameter, mean in zip(parameters, means, strict=True):
            if parameter in self._means:
                mean.copy_(self._means.pop(parameter))
        combine(flat, parameters[0])
        weight = 1 - self.options.row_beta
        torch._foreach_mul_(states, 1 - weight * keep)
        flat.mul_(weight * keep)
        torch._foreach_add_(states, means)


def build(
    groups: list[ParameterGroup], config: OptimConfig, options: NorMuonOptions, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """Returns NorMuon for the matrices of the blocks and AdamW for the rest."""
    return NorMuon(split_matrices(groups), **muon.settings(config, options, dtype))


def state_bytes(name: str, shape: tuple[int, ...], held: int) -> int:
    """Returns the bytes of Muon's state, plus a float32 per row of an unsharded block matrix."""
    rows = shape[0] if is_block_matrix(name, len(shape)) else 0
    return muon.state_bytes(name, shape, held) + 4 * rows


OPTIMIZER = Optimizer(NorMuonOptions, build, state_bytes, is_block_matrix)
