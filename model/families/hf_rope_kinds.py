"""Converts rotary positions that layers with the sliding window have of their own.

In version 5 of transformers, `rope_parameters` has an entry per kind of layer. In version 4,
`rope_theta` and `rope_scaling` are those of full attention. Layers with the window are not scaled;
their base is `rope_local_base_freq` in classes that have this key, otherwise `rope_theta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import InputError
from model.families.fields import Fields
from model.families.hf_rope import read_settings, write_scaling
from model.families.layer_types import FULL, SLIDING


def check_kinds(model: Mapping[str, Any]) -> None:
    """Raises InputError unless exactly the models with a window have `local_rope_theta`."""
    window, local = model["sliding_window"], model["local_rope_theta"]
    key = f"model.local_rope_theta={local}"
    if window is not None and local is None:
        raise InputError(
            f"{key}: layers with the window have a RoPE base of their own with "
            f"model.architecture={model['architecture']}, which may be the same. Set this key, for "
            f"example to {model['rope_theta']:g}."
        )
    if window is None and local is not None:
        raise InputError(f"{key}: no layer has a sliding window. Remove this key.")
    if not model["rope_scaling"].truncate:
        raise InputError(
            "model.rope_scaling.truncate=false: transformers ignores this key with "
            f"model.architecture={model['architecture']}. Remove it."
        )


def write_kinds(model: Mapping[str, Any]) -> Fields:
    """Returns the rotary positions of a model as fields of a config.json, in both forms."""
    theta, scaling = model["rope_theta"], model["rope_scaling"]
    scaled = write_scaling(scaling) if scaling.type else {}
    local = model["local_rope_theta"] or theta
    return {
        "rope_theta": theta,
        **({"rope_scaling": scaled} if scaled else {}),
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": theta, **scaled},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def read_kinds(config: Mapping[str, Any], default_theta: float, local_theta: float) -> Fields:
    """Returns `rope_theta`, `rope_scaling` and `local_rope_theta` of a config.json.

    Raises InputError if the network does not have these positions.

    Args:
        config: The fields of a config.json.
        default_theta: Base of full attention that the class assumes.
        local_theta: Base of layers with the window, if `rope_parameters` states none.
    """
    kinds = config.get("rope_parameters") or {}
    if kinds.keys() - {FULL, SLIDING}:
        raise InputError(
            f"rope_parameters={kinds}: expected an entry '{FULL}' and an entry '{SLIDING}'."
        )
    full = {**(kinds.get(FULL) or {}), **(config.get("rope_scaling") or {})}
    full.pop("truncate", None)  # read from the wrong place by transformers, so without effect
    without_theta = {key: value for key, value in config.items() if key != "rope_theta"}
    local = read_settings(kinds.get(SLIDING) or {}, without_theta, local_theta)
    if local["rope_scaling"].type:
        raise InputError(
            f"rope_parameters.{SLIDING}={kinds[SLIDING]}: scaled positions in layers with the "
            "window are not supported. Give a model that scales those of full attention only."
        )
    return {**read_settings(full, config, default_theta), "local_rope_theta": local["rope_theta"]}
