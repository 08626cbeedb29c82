"""The optimizers that `optim.name` chooses from, and the groups of parameters that they update.

To add an optimizer, write a module that defines `OPTIMIZER`, and add a line to `OPTIMIZERS`. The
trainer, the memory plan and the checkpoints need no changes. `normuon.py` is a short example.

`optim.groups` gives chosen parameters their own learning rate and weight decay. With

    groups: {embeddings: {match: "embed_tokens.*", lr_scale: 0.1, weight_decay: 0.0}}

the embedding has a tenth of the learning rate that `schedule.py` computes, and no weight decay.
With `model.parametrization=completep`, the settings of a group are those of the base model, and are
scaled for each parameter (`model.parametrization`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import InputError, one_of
from conf.options import read_options
from model.parametrization import STANDARD, Parametrization
from model.parametrization import is_block_matrix as is_block_matrix
from pretrain.config import OptimConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMIZERS = {
    "adamw": "pretrain.optim.adamw",
    "muon": "pretrain.optim.muon",
    "normuon": "pretrain.optim.normuon",
}
"""The module of each optimizer, by name.

Only the module of the chosen optimizer is imported, because these modules need torch."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that `optim.name` can choose.

    options: dataclass of the optimizer's own options, whose fields are the keys of `optim.options`.
    build: function (parameter groups, config, options, dtype) -> the optimizer, where dtype is that
        of the run's matrix products.
    state_bytes: function (name, shape, held) -> bytes of state that a rank keeps for a parameter of
        this shape, of which the rank holds `held` elements.
    orthogonalizes: function (name, number of dimensions) -> whether the updates of a parameter are
        orthogonalized, so that they transfer over widths as Muon's do (`model.parametrization`).
    """

    options: type
    build: Callable[[list[ParameterGroup], OptimConfig, Any, torch.dtype], torch.optim.Optimizer]
    state_bytes: Callable[[str, tuple[int, ...], int], int]
    orthogonalizes: Callable[[str, int], bool] = lambda name, dimensions: False


class Settings(NamedTuple):
    """Settings of the optimizer for a parameter."""

    lr_scale: float
    weight_decay: float
    eps: float


@dataclass
class ParameterGroup:
    """A group of parameters that share their settings."""

    lr_scale: float
    weight_decay: float
    eps: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def as_dict(self, **settings: Any) -> dict[str, Any]:
        """Returns the group as `torch.optim` expects it. The trainer sets `lr` in each step."""
        return {
            "params": list(self.parameters.values()),
            "lr_scale": self.lr_scale,
            "weight_decay": self.weight_decay,
            "eps": self.eps,
            **settings,
        }


def optimizer_of(name: str) -> Optimizer:
    """Returns the optimizer of this name. Raises InputError if the name is unknown."""
    one_of("optim.name", name, OPTIMIZERS)
    found: Optimizer = importlib.import_module(OPTIMIZERS[name]).OPTIMIZER
    return found


def options_of(config: OptimConfig) -> Any:
    """Returns the optimizer's own options. Raises InputError if one is unknown or invalid."""
    return read_options("optim.options", optimizer_of(config.name).options, config.options)


def with_all_options(config: OptimConfig) -> OptimConfig:
    """Returns the config with the optimizer's defaults filled in, so that a run folder has them."""
    return replace(config, options=asdict(options_of(config)))


def check_optimizer(config: OptimConfig, dimensions: Mapping[str, int]) -> None:
    """Raises InputError if the optimizer, its options or its groups are invalid.

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
                "earlier groups contain all parameters that this glob matches"
                if taken
                else "this glob matches no parameter (an example of a name is "
                f"{next(iter(dimensions))})"
            )
            raise InputError(
                f"optim.groups.{key}.match={group.match}: {problem}. Change or remove the group."
            )


def settings_of(
    name: str, dimensions: int, config: OptimConfig, parametrization: Parametrization = STANDARD
) -> Settings:
    """Returns the settings of a parameter.

    Matrices have weight decay. Norms and the embedding have none unless the config says so. The
    head counts as a matrix, or as an embedding if it is tied. A group that matches the name
    overrides these rules. The parametrization then scales all settings.
    """
    if dimensions == 1:
        decayed = config.decay_norms
    elif name.startswith("embed_tokens."):
        decayed = config.decay_embeddings
    else:
        decayed = True
    lr_scale, weight_decay = 1.0, config.weight_decay if decayed else 0.0
    if (group := config.groups.get(_first_match(name, config) or "")) is not None:
        lr_scale = group.lr_scale
        weight_decay = weight_decay if group.weight_decay is None else group.weight_decay
    orthogonalized = optimizer_of(config.name).orthogonalizes(name, dimensions)
    scales = parametrization.update_scales(name, dimensions, orthogonalized)
    return Settings(
        lr_scale * scales.learning_rate,
        weight_decay * scales.weight_decay,
        config.eps * scales.eps,
    )


def parameter_groups(
    model: nn.Module, config: OptimConfig, parametrization: Parametrization = STANDARD
) -> list[ParameterGroup]:
    """Returns the parameters of a model, grouped by their settings."""
    groups: dict[Settings, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        settings = settings_of(name, parameter.ndim, config, parametrization)
        group = groups.setdefault(settings, ParameterGroup(*settings))
        group.parameters[name] = parameter
    return list(groups.values())


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    dtype: torch.dtype | None = None,
    parametrization: Parametrization = STANDARD,
) -> torch.optim.Optimizer:
    """Builds the optimizer for a model, whose parameters may be sharded.

    Args:
        model: The model.
        config: The optimizer's config.
        dtype: Dtype of the matrix products of the run; by default, that of the parameters.
        parametrization: Scales of the model.
    """
    groups = parameter_groups(model, config, parametrization)
    dtype = dtype or next(model.parameters()).dtype
    return optimizer_of(config.name).build(groups, config, options_of(config), dtype)


def _first_match(name: str, config: OptimConfig) -> str | None:
    """Returns the key of the first group that matches a parameter's name, or None."""
    return next((k for k, group in config.groups.items() if fnmatchcase(name, group.match)), None)
