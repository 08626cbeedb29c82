"""Models of other sizes with the proportions of a given one."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import InputError
from model.config import ModelConfig


def resized(model: ModelConfig, hidden_size: int, num_layers: int) -> ModelConfig:
    """Returns a model of another width and depth with the proportions and head_dim of `model`.

    Raises:
        InputError: the width would need a fraction of a head.
    """
    sizes = {}
    for key in ("num_heads", "num_kv_heads", "intermediate_size"):
        size = getattr(model, key) * hidden_size / model.hidden_size
        sizes[key] = round(size)
        if key != "intermediate_size" and sizes[key] != size:
            raise InputError(
                f"model.hidden_size={hidden_size}: expected a width at which model.{key} is a "
                f"whole number with the proportions of a width of {model.hidden_size}, but it is "
                f"{size:g}."
            )
    return replace(model, hidden_size=hidden_size, num_layers=num_layers, **sizes)


def completep(model: ModelConfig, base: ModelConfig) -> ModelConfig:
    """Returns a model with CompleteP, relative to a base model."""
    return replace(
        model,
        parametrization="completep",
        base_hidden_size=base.hidden_size,
        base_num_layers=base.num_layers,
    )
