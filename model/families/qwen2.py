"""Qwen2 and Qwen2.5: biases of queries, keys and values, and a sliding window in chosen layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import Graph
from model.families.layer_types import FULL, SLIDING, types_of, windows_of


class Qwen2(Family):
    """Adapter of `Qwen2ForCausalLM`."""

    hf_class = "Qwen2ForCausalLM"
    features = frozenset({"sliding_window", "window_pattern"})
    fixed: ClassVar[Mapping[str, Any]] = {"qkv_bias": True}
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the sliding window, and which layers have it instead of full attention."""
        types = types_of(model)
        return {
            "use_sliding_window": SLIDING in types,
            "sliding_window": model["sliding_window"],
            "max_window_layers": types.index(SLIDING) if SLIDING in types else len(types),
            "layer_types": types,
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the biases, the sliding window, and the pattern of layers that have the window.

        Without `layer_types`, the layers from `max_window_layers` on have the window.
        """
        window = config["sliding_window"] if config["use_sliding_window"] else None
        layers, first = config["num_hidden_layers"], config["max_window_layers"]
        types = config["layer_types"] or [
            SLIDING if window is not None and layer >= first else FULL for layer in range(layers)
        ]
        return {**self.fixed, **windows_of(types, layers, window)}

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model, which has no windows."""
        return Graph("qwen2", splits_hidden=True)
