"""Llama: full attention in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import LLAMA, Graph


class Llama(Family):
    """Adapter of `LlamaForCausalLM`."""

    hf_class = "LlamaForCausalLM"

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the settings for biases: false, as the network has no biases."""
        return {"attention_bias": False, "mlp_bias": False}

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model."""
        return LLAMA
