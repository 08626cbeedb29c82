"""NorMuon (arXiv 2510.05491): Muon whose orthogonal update is normalized row by row.

Newton-Schulz equalizes the singular values but not the norms of the rows, so some neurons get much
larger updates than others. Dividing each row by the root of a running mean of its squares, as Adam
does per element, evens them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.config import OptimConfig
from pretrain.optim import Optimizer, ParameterGroup, is_block_matrix, muon
from pretrain.optim.muon import UPDATE_RMS, Muon, MuonOptions, orthogonal, split_matrices

EPS = 1e-8


@dataclass(frozen=True)
class NorMuonOptions(MuonOptions):
    """Options of NorMuon. row_beta: decay of the running mean of a row's squares."""

    row_beta: float = 0.95


class NorMuon(Muon):
    """Updates block matrices by NorMuon, and all other parameters by AdamW."""

    def __init__(self, *args: Any, row_beta: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.row_beta = row_beta

    def init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Returns Muon's state and each row's mean square (rows,), unsharded on every rank."""
        rows = torch.zeros(parameter.shape[0], dtype=parameter.dtype, device=parameter.device)
        return super().init_state(parameter) | {"row_squares": rows}

    def direction(
        self, update: Tensor, state: dict[str, Tensor], keep: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Returns the normalized direction, and the factor that scales its RMS to UPDATE_RMS."""
        matrix = orthogonal(update, self.steps)
        squares = state["row_squares"].lerp_(matrix.square().mean(1), (1 - self.row_beta) * keep)
        matrix = matrix / (squares.sqrt() + EPS)[:, None]
        return matrix, UPDATE_RMS * math.sqrt(matrix.numel()) / matrix.norm().clamp(min=EPS)


def build(
    groups: list[ParameterGroup], config: OptimConfig, options: NorMuonOptions
) -> torch.optim.Optimizer:
    """Returns NorMuon for the matrices of the blocks and AdamW for the rest."""
    arguments = muon.settings(config, options)
    return NorMuon(split_matrices(groups), row_beta=options.row_beta, **arguments)


def state_bytes(name: str, shape: tuple[int, ...], held: int) -> int:
    """Returns the bytes of Muon's state, plus a float32 per row of an unsharded block matrix."""
    rows = shape[0] if is_block_matrix(name, len(shape)) else 0
    return muon.state_bytes(name, shape, held) + 4 * rows


OPTIMIZER = Optimizer(NorMuonOptions, build, state_bytes)
