"""Qwen3: QK-norm in all layers, and a sliding window in none, some or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import InputError
from model.families.family import Family, Fields
from model.layer_pattern import layer_windows, shortest_pattern

FULL, SLIDING = "full_attention", "sliding_attention"


class Qwen3(Family):
    """Adapter of `Qwen3ForCausalLM`."""

    hf_class = "Qwen3ForCausalLM"
    features = frozenset({"sliding_window", "window_pattern"})
    fixed = {"qk_norm": True}  # noqa: RUF012
    hf_defaults = {  # noqa: RUF012
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the sliding window, and which layers have it instead of full attention."""
        windows = layer_windows(
            model["window_pattern"], model["num_layers"], model["sliding_window"]
        )
        types = [FULL if window is None else SLIDING for window in windows]
        return {
            "attention_bias": False,
            "use_sliding_window": SLIDING in types,
            "sliding_window": model["sliding_window"],
            "max_window_layers": types.index(SLIDING) if SLIDING in types else len(types),
            "layer_types": types,
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns QK-norm, the sliding window, and the pattern of layers that have the window."""
        window = config["sliding_window"] if config["use_sliding_window"] else None
        layers, first = config["num_hidden_layers"], config["max_window_layers"]
        types = config["layer_types"] or [
            SLIDING if window is not None and layer >= first else FULL for layer in range(layers)
        ]
        if len(types) != layers or set(types) - {FULL, SLIDING}:
            raise InputError(
                f"layer_types={types}: expected {layers} entries, each '{FULL}' or '{SLIDING}'."
            )
        if SLIDING in types and window is None:
            raise InputError(
                f"layer_types={types}: '{SLIDING}' requires use_sliding_window=true and a "
                "sliding_window. Change one of these keys."
            )
        windows = [window if kind == SLIDING else None for kind in types]
        return {
            "qk_norm": True,
            "sliding_window": window if SLIDING in types else None,
            "window_pattern": shortest_pattern(windows),
        }
