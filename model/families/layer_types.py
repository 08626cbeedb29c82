"""Converts window patterns to and from `layer_types`, the names of layers in a config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conf.errors import InputError
from model.families.fields import Fields
from model.layer_pattern import layer_windows, shortest_pattern

FULL, SLIDING = "full_attention", "sliding_attention"


def types_of(model: Mapping[str, Any]) -> list[str]:
    """Returns the type of each layer of a model."""
    windows = layer_windows(model["window_pattern"], model["num_layers"], model["sliding_window"])
    return [FULL if window is None else SLIDING for window in windows]


def windows_of(types: Sequence[str], layers: int, window: int | None) -> Fields:
    """Returns `sliding_window` and `window_pattern` of a model.

    Raises InputError if a type is unknown, or if there is no window for a layer that needs one.

    Args:
        types: The type of each layer.
        layers: Number of layers.
        window: The window; None if the config.json has none or does not use it.
    """
    if len(types) != layers or set(types) - {FULL, SLIDING}:
        raise InputError(
            f"layer_types={list(types)}: expected {layers} entries, each '{FULL}' or '{SLIDING}'."
        )
    if SLIDING in types and window is None:
        raise InputError(
            f"layer_types={list(types)}: '{SLIDING}' requires use_sliding_window=true and a "
            "sliding_window. Change one of these keys."
        )
    return {
        "sliding_window": window if SLIDING in types else None,
        "window_pattern": shortest_pattern([window if kind == SLIDING else None for kind in types]),
    }
