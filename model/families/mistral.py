"""Mistral: the same sliding window, or full attention, in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import LLAMA, Graph


class Mistral(Family):
    """Adapter of `MistralForCausalLM`."""

    hf_class = "MistralForCausalLM"
    features = frozenset({"sliding_window"})
    hf_defaults = {"sliding_window": 4096, "num_key_value_heads": 8}  # noqa: RUF012

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the sliding window as a field of a config.json."""
        return {"sliding_window": model["sliding_window"]}

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the sliding window as a field of `ModelConfig`."""
        return {"sliding_window": config["sliding_window"]}

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model, which has no windows."""
        return LLAMA
