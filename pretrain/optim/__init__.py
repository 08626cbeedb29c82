"""The optimizers that `optim.name` chooses from, and the groups of parameters that they update.

To add one, write a module that defines `OPTIMIZER` and give it a line in `OPTIMIZERS`; the trainer,
the plan of memory and the checkpoints follow from that. `normuon.py` is a short example.

`optim.groups` gives chosen parameters a learning rate and a weight decay of their own. With

    groups: {embeddings: {match: "embed_tokens.*", lr_scale: 0.1, weight_decay: 0.0}}

the embedding learns at a tenth of the rate that `schedule` returns, and is not decayed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from conf.errors import InputError, one_of
from conf.options import read_options
from pretrain.config import OptimConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = {
    "adamw": "pretrain.optim.adamw",
    "muon": "pretrain.optim.muon",
    "normuon": "pretrain.optim.normuon",
}
"""The module of each optimizer; imported when it is chosen, because it needs torch."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that `optim.name` can choose.

    options: dataclass of its own options, the keys of `optim.options`.
    build: (parameter groups, config, options) -> the optimizer.
    state_bytes: (name, shape, held) -> bytes of state that a rank keeps for a parameter of this
        shape, of which it holds `held` numbers.
    """

    options: type
    build: Callable[[list[ParameterGroup], OptimConfig, Any], torch.optim.Optimizer]
    state_bytes: Callable[[str, tuple[int, ...], int], int]


@dataclass
class ParameterGroup:
    """Parameters by name that share a learning rate and a weight decay."""

    lr_scale: float
    weight_decay: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def as_dict(self, **settings: Any) -> dict[str, Any]:
        """Returns the group as `torch.optim` takes it. The trainer sets `lr` before each step."""
        return {
            "params": list(self.parameters.values()),
            "lr_scale": self.lr_scale,
            "weight_decay": self.weight_decay,
            **settings,
        }


def optimizer_of(name: str) -> Optimizer:
    """Returns the entry of an optimizer. Raises InputError where there is none of that name."""
    one_of("optim.name", name, OPTIMIZERS)
    found: Optimizer = importlib.import_module(OPTIMIZERS[name]).OPTIMIZER
    return found


def options_of(config: OptimConfig) -> Any:
    """Returns the dataclass of the optimizer's own options. Raises InputError for a bad one."""
    return read_options("optim.options", optimizer_of(config.name).options, config.options)


def with_all_options(config: OptimConfig) -> OptimConfig:
    """Returns the config with all options of its optimizer, so that a run folder records them."""
    return replace(config, options=asdict(options_of(config)))


def check_optimizer(config: OptimConfig, dimensions: Mapping[str, int]) -> None:
    """Raises InputError where the optimizer, its options or its groups are not possible.

    dimensions: number of dimensions of each parameter by name.
    """
    options_of(config)
    for key, group in config.groups.items():
        for name in ("lr_scale", "weight_decay"):
            if (getattr(group, name) or 0.0) < 0:
                raise InputError(
                    f"optim.groups.{key}.{name}={getattr(group, name)}: expected 0 or more."
                )
        if not any(_first_match(name, config) == key for name in dimensions):
            taken = any(fnmatchcase(name, group.match) for name in dimensions)
            problem = (
                "earlier groups match all of its parameters"
                if taken
                else f"no parameter has such a name (there is {next(iter(dimensions))})"
            )
            raise InputError(
                f"optim.groups.{key}.match={group.match}: {problem}. Change or drop the group."
            )


def settings_of(name: str, dimensions: int, config: OptimConfig) -> tuple[float, float]:
    """Returns the `lr_scale` and the weight decay of a parameter.

    Matrices are decayed; norms and the embedding are not, unless the config asks for it. The head
    is a matrix, and a tied one is an embedding. A group that matches the name overrides that.
    """
    if dimensions == 1:
        decayed = config.decay_norms
    elif name.startswith("embed_tokens."):
        decayed = config.decay_embeddings
    else:
        decayed = True
    weight_decay = config.weight_decay if decayed else 0.0
    group = config.groups.get(_first_match(name, config) or "")
    if group is None:
        return 1.0, weight_decay
    return group.lr_scale, weight_decay if group.weight_decay is None else group.weight_decay


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """Returns the parameters of a model, grouped by learning rate and weight decay."""
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        settings = settings_of(name, parameter.ndim, config)
        group = groups.setdefault(settings, ParameterGroup(*settings))
        group.parameters[name] = parameter
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Returns the optimizer of a model, whose parameters may be sharded."""
    return optimizer_of(config.name).build(
        parameter_groups(model, config), config, options_of(config)
    )


def is_block_matrix(name: str, dimensions: int) -> bool:
    """Returns whether a parameter is a matrix of a block, which Muon and its relatives update."""
    return name.startswith("layers.") and dimensions == 2


def _first_match(name: str, config: OptimConfig) -> str | None:
    """Returns the key of the group that a parameter belongs to."""
    return next((k for k, group in config.groups.items() if fnmatchcase(name, group.match)), None)
