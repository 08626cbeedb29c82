"""OLMo 2: norms after attention and MLP only, and QK-norm over all heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import Graph


class Olmo2(Family):
    """Adapter of `Olmo2ForCausalLM`."""

    hf_class = "Olmo2ForCausalLM"
    fixed: ClassVar[Mapping[str, Any]] = {
        "norm_order": "after",
        "qk_norm": True,
        "qk_norm_width": "projection",
    }
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the setting for biases: false, as the network has none here."""
        return {"attention_bias": False}

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the order of norms and the QK-norm, which all models of the class have."""
        return dict(self.fixed)

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model."""
        return Graph(
            "olmo2", has_windows=True, local_yarn=True, shares_head=False, splits_hidden=True
        )
