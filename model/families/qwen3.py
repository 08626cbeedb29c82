"""Qwen3: QK-norm in all layers, and a sliding window in none, some or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from model.families.fields import Fields
from model.families.gguf import Graph
from model.families.qwen2 import Qwen2


class Qwen3(Qwen2):
    """Adapter of `Qwen3ForCausalLM`, which states its windows like Qwen2."""

    hf_class = "Qwen3ForCausalLM"
    fixed: ClassVar[Mapping[str, Any]] = {"qk_norm": True}
    hf_defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.hf_defaults, "head_dim": 128}

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the sliding window, its layers, and the setting for biases: false."""
        return {"attention_bias": False, **super().to_hf(model)}

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model, which has no windows."""
        return Graph("qwen3")
