"""Muon for the matrices of the blocks, and AdamW for embedding, head and norms.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) orthogonalizes the momentum of each
matrix and uses the result as the update.

A sharded matrix gets the same update as an unsharded one, because it has an owner (`owners`): the
owner gathers the momentum, orthogonalizes it, together with others of this shape, and scatters the
result. While it computes, the messages of the next shape are under way. `torch.optim.Muon` instead
lets DTensor shard the Newton-Schulz iteration. Its partial sums are then rounded to bfloat16 on
each rank, and the iteration amplifies these errors, so updates can differ by 3% between layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from conf.errors import InputError, one_of
from pretrain.config import OptimConfig
from pretrain.optim import Optimizer, ParameterGroup, adamw, is_block_matrix
from pretrain.optim.newton_schulz import COEFFICIENTS, flops, orthogonalized, polynomials
from pretrain.optim.owners import Message, Round, rounds

UPDATE_RMS = 0.2
"""Typical root mean square of an AdamW update (Moonlight, arXiv 2502.16982, section 2.2).

Updates of this size let matrices and other parameters share a learning rate and a weight decay."""


@dataclass(frozen=True)
class MuonOptions:
    """Options of Muon.

    ns_steps: number of Newton-Schulz iterations.
    ns_coefficients: polynomials of the iterations: jordan (Jordan et al., 2024) or polar_express
        (arXiv 2505.16932), which comes closer to orthogonal in as many steps.
    """

    momentum: float = 0.95
    ns_steps: int = 5
    ns_coefficients: str = "jordan"

    def __post_init__(self) -> None:
        one_of("optim.options.ns_coefficients", self.ns_coefficients, COEFFICIENTS)
        if self.ns_steps < 1:
            raise InputError(f"optim.options.ns_steps={self.ns_steps}: expected 1 or more.")


class Muon(torch.optim.AdamW):
    """Updates the groups with muon=True by Muon, and the others by AdamW.

    A step is skipped if the 0-d tensor `found_inf` is 1, without waiting for the device, as in
    fused AdamW. Subclasses change the update of a matrix by overriding `init_state`, `direction`
    and `update_rms`.

    dtype: dtype of the products of the iteration, and of the messages between ranks.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
        options: MuonOptions,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        self.options, self.dtype = options, dtype
        self.polynomials = polynomials(options.ns_coefficients, options.ns_steps)
        self._rounds: list[Round] = []
        self._planned: list[Tensor] = []

    def init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Returns the initial state of a matrix. The momentum is sharded like the parameter."""
        # AdamW expects `step` in every state that it loads.
        return {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}

    def direction(self, momenta: Tensor, parameters: list[Tensor]) -> Tensor:
        """Returns the directions (count, rows, columns) of matrices that this rank owns.

        momenta: the whole momenta of these matrices, in the dtype of the iteration.
        """
        return orthogonalized(momenta, self.polynomials)

    def finish_step(self, parameters: list[Tensor], keep: Tensor | float) -> None:
        """Is called on every rank when all matrices of a step are updated. Does nothing here.

        keep: 0 if the step is skipped and the state must not change, else 1.
        """

    def scale(self, rows: int, columns: int) -> float:
        """Returns the factor that scales the RMS of a direction to UPDATE_RMS."""
        return UPDATE_RMS * math.sqrt(max(rows, columns))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes one step, and clears the gradients of the matrices so that AdamW skips them."""
        assert closure is None
        keep: Tensor | float = 1.0
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            keep = 1 - found_inf
        self._update_matrices(keep)
        adamw_step = torch.optim.AdamW.step
        # torch wraps this method when an AdamW is built. Calling the wrapper would run hooks twice.
        while getattr(adamw_step, "hooked", False):
            adamw_step = adamw_step.__wrapped__  # type: ignore[attr-defined]
        adamw_step(self)

    def _update_matrices(self, keep: Tensor | float) -> None:
        """Updates all matrices. keep: 0 if the step is skipped, else 1.

        While the owners of a round compute, the messages of the next round and of the last one are
        under way.
        """
        todo = self._plan()
        gathered = self._gather(todo[0], keep) if todo else None
        previous: tuple[Round, Message] | None = None
        for now, following in zip(todo, [*todo[1:], None], strict=True):
            assert gathered is not None
            message, gathered = gathered, self._gather(following, keep) if following else None
            scattered = now.scatter(self._directions(now, message.wait()))
            if previous is not None:
                self._apply(*previous, keep)
            previous = now, scattered
        if previous is not None:
            self._apply(*previous, keep)
            self.finish_step(self._planned, keep)

    def _plan(self) -> list[Round]:
        """Returns the rounds of the matrices that have gradients, which rarely change."""
        matrices = [
            parameter
            for group in self.param_groups
            if group["muon"]
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if [*map(id, matrices)] != [*map(id, self._planned)]:
            cost = partial(flops, steps=self.options.ns_steps)
            self._planned, self._rounds = matrices, rounds(matrices, cost)
        return self._rounds

    def _gather(self, now: Round, keep: Tensor | float) -> Message:
        """Updates the momenta of a round, and starts to send them to the owners."""
        states = [self.state[parameter] for parameter in now.parameters]
        for parameter, state in zip(now.parameters, states, strict=True):
            if not state:
                state.update(self.init_state(parameter))
        torch._foreach_add_([state["step"] for state in states], 1)
        momenta = [_local(state["momentum"]) for state in states]
        flat = torch.cat([_local(p.grad).reshape(-1) for p in now.parameters if p.grad is not None])
        if isinstance(keep, Tensor):
            flat.masked_fill_(keep == 0, 0)  # NaN times 0 would be NaN
        gradients = now.split(flat)
        weight = 1 - self.options.momentum
        torch._foreach_mul_(momenta, 1 - weight * keep)
        torch._foreach_add_(momenta, gradients, alpha=weight)
        start, end = now.sent.start, now.sent.stop
        if start < end:  # Nesterov momentum
            torch._foreach_lerp_(gradients[start:end], momenta[start:end], self.options.momentum)
        first, last = (sum(g.numel() for g in gradients[:index]) for index in (start, end))
        return now.gather(flat[first:last].to(self.dtype))

    def _directions(self, now: Round, gathered: Tensor) -> Tensor:
        """Returns the directions (count, rows, columns) of the matrices that this rank owns."""
        owned = now.parameters[now.owned]
        if not owned:
            return gathered.new_empty(0, *now.shape)
        return self.direction(now.whole(gathered), owned)

    def _apply(self, now: Round, scattered: Message, keep: Tensor | float) -> None:
        """Updates this rank's parts of the matrices of a round, and clears their gradients."""
        flat = scattered.wait().to(_local(now.parameters[0]).dtype)
        directions = now.split(flat.mul_(keep))
        scale = self.scale(*now.shape)
        group_of = {p: index for index, g in enumerate(self.param_groups) for p in g["params"]}
        for index, group in enumerate(self.param_groups):
            chosen = [i for i, p in enumerate(now.parameters) if group_of[p] == index]
            if chosen:
                targets = [_local(now.parameters[i]) for i in chosen]
                torch._foreach_mul_(targets, 1 - group["lr"] * group["weight_decay"] * keep)
                updates = [directions[i] for i in chosen]
                torch._foreach_add_(targets, updates, alpha=-group["lr"] * scale)
        for parameter in now.parameters:
            parameter.grad = None


def build(
    groups: list[ParameterGroup], config: OptimConfig, options: MuonOptions, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """Returns Muon for the matrices of the blocks and AdamW for the rest."""
    return Muon(split_matrices(groups), **settings(config, options, dtype))


def settings(config: OptimConfig, options: MuonOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the arguments of `Muon` that come from the config."""
    return {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "fused": True,
        "options": options,
        "dtype": dtype,
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
                found.append(replace(group, parameters=parameters).as_dict(muon=muon))
    return found


def state_bytes(name: str, shape: tuple[int, ...], held: int) -> int:
    """Returns the bytes of a float32 momentum for a block matrix, or else of AdamW's state."""
    return 4 * held if is_block_matrix(name, len(shape)) else adamw.state_bytes(name, shape, held)


def _local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


OPTIMIZER = Optimizer(MuonOptions, build, state_bytes, is_block_matrix)
