"""SmolLM3: layers without positions, and a sliding window in none, some or all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from conf.errors import InputError
from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import LLAMA, Graph
from model.families.layer_types import FULL, SLIDING, types_of, windows_of
from model.layer_pattern import layer_positions, rope_pattern


class SmolLM3(Family):
    """Adapter of `SmolLM3ForCausalLM`."""

    hf_class = "SmolLM3ForCausalLM"
    features = frozenset({"sliding_window", "window_pattern", "rope_pattern"})
    default_theta = 2_000_000.0
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "tie_word_embeddings": True,
    }

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the layers that have positions, the sliding window, and its layers."""
        types = types_of(model)
        rotary = layer_positions(model["rope_pattern"], model["num_layers"])
        return {
            "attention_bias": False,
            "mlp_bias": False,
            "no_rope_layers": [int(layer) for layer in rotary],
            "use_sliding_window": SLIDING in types,
            "sliding_window": model["sliding_window"],
            "layer_types": types,
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the pattern of layers with positions, the sliding window, and its pattern.

        `no_rope_layers` has a 1 for each layer with positions. Without it, every fourth layer (or
        every `no_rope_layer_interval`-th) has none. Without `layer_types`, the sliding window is in
        the layers without positions.
        """
        layers, every = config["num_hidden_layers"], config["no_rope_layer_interval"]
        rotary = config["no_rope_layers"]
        if rotary is None:
            rotary = [int((layer + 1) % every != 0) for layer in range(layers)]
        if len(rotary) < layers:
            raise InputError(
                f"no_rope_layers={rotary}: expected an entry for each of the {layers} layers."
            )
        window = config["sliding_window"] if config["use_sliding_window"] else None
        types = config["layer_types"] or [
            SLIDING if window is not None and not rotary[layer] else FULL for layer in range(layers)
        ]
        return {
            "rope_pattern": rope_pattern([bool(layer) for layer in rotary[:layers]]),
            **windows_of(types, layers, window),
        }

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model, which has no windows."""
        if model["rope_pattern"] is None:
            return LLAMA
        return Graph("smollm3", interleaved_rope=True, no_rope_every=4)
