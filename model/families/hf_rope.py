"""Converts rotary positions between `ModelConfig` and the settings in a config.json.

Version 4 of transformers has `rope_theta` and `rope_scaling`, version 5 the same numbers in
`rope_parameters`. Both compute positions alike; missing settings have version 5's values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from conf.errors import InputError
from model.families.fields import Fields
from model.rope_scaling import KEYS_OF_TYPES, RopeScaling

HF_NAMES = {"original_max_seq_len": "original_max_position_embeddings"}
"""Names in a config.json, keyed by those in `RopeScaling`, where they differ."""


def read_rope(config: Mapping[str, Any], default_theta: float) -> Fields:
    """Returns `rope_theta` and `rope_scaling` of a config.json with one RoPE for all layers.

    Raises InputError if the network does not have this RoPE.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise InputError(
            "rope_parameters with an entry per kind of layer are not supported in models of this "
            "family. Give a model with one RoPE for all layers."
        )
    return read_settings(settings, config, default_theta)


def read_settings(
    settings: Mapping[str, Any], config: Mapping[str, Any], default_theta: float
) -> Fields:
    """Returns `rope_theta` and `rope_scaling` of one RoPE.

    Args:
        settings: An entry of `rope_parameters`, or `rope_scaling`.
        config: The config.json, for what the settings lack.
        default_theta: The base that the model class assumes.
    """
    theta = settings.get("rope_theta") or config.get("rope_theta") or default_theta
    rotary = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if rotary != 1:
        raise InputError(
            f"partial_rotary_factor={rotary} is not supported. Give a model that rotates whole "
            "heads."
        )
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return {"rope_theta": float(theta), "rope_scaling": RopeScaling()}
    if kind not in KEYS_OF_TYPES:
        raise InputError(
            f"RoPE of type {kind} is not supported. Give a model with RoPE of type default, "
            f"{', '.join(KEYS_OF_TYPES)}."
        )
    return {"rope_theta": float(theta), "rope_scaling": _read_scaling(settings, config, kind)}


def _read_scaling(settings: Mapping[str, Any], config: Mapping[str, Any], kind: str) -> RopeScaling:
    positions = config["max_position_embeddings"]
    keys = KEYS_OF_TYPES[kind]
    found = {key: settings.get(HF_NAMES.get(key, key)) for key in keys}
    if "original_max_seq_len" in keys:
        found["original_max_seq_len"] = found["original_max_seq_len"] or positions
    factor = settings.get("factor")
    if factor is None and kind == "yarn":
        factor = positions / found["original_max_seq_len"]
    needed = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    for key, value in {"factor": factor, **{key: found[key] for key in needed}}.items():
        if value is None:
            raise InputError(
                f"RoPE of type {kind} lacks {key}. Give the folder of a complete model."
            )
    assert factor is not None
    factor = float(factor)
    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    if kind == "yarn" and found["attention_factor"] is None and above and below:
        found["attention_factor"] = _magnitude(factor, above) / _magnitude(factor, below)
    return RopeScaling(kind, factor, **{key: v for key, v in found.items() if v is not None})


def _magnitude(factor: float, scale: float) -> float:
    """Returns how much YaRN scales cosines and sines; `scale` is that of a mixed setting."""
    return 0.1 * scale * math.log(factor) + 1


def write_scaling(scaling: RopeScaling) -> Fields:
    """Returns `rope_scaling` of a config.json."""
    assert scaling.type is not None
    keys = {key: getattr(scaling, key) for key in KEYS_OF_TYPES[scaling.type]}
    return {
        "rope_type": scaling.type,
        "factor": scaling.factor,
        **{HF_NAMES.get(key, key): value for key, value in keys.items() if value is not None},
    }
