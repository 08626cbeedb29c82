"""The base class of the adapters between `ModelConfig` and a Hugging Face family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from conf.errors import InputError
from model.families.fields import Fields
from model.families.gguf import Graph
from model.families.hf_rope import read_rope, write_scaling

OPTIONAL_FEATURES: Fields = {
    "sliding_window": None,
    "window_pattern": None,
    "norm_order": "before",
    "zero_centered_norms": False,
    "qk_norm": False,
    "qk_norm_width": "head",
    "qkv_bias": False,
    "query_pre_attn_scalar": None,
    "activation": "silu",
    "scale_embeddings": False,
    "logit_softcap": None,
    "head_gates": False,
    "local_rope_theta": None,
    "rope_pattern": None,
}
"""Fields of `ModelConfig` that not every family supports, with their values if not used."""

HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Names of activations in a config.json, keyed by `model.activation`."""

COMMON_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
"""Names in a config.json, keyed by names in `ModelConfig`, for the fields of all families.

The positions are converted by `Family.rope_to_hf` and `Family.rope_from_hf`.
"""


class Family:
    """Adapter between the network and one Hugging Face model class.

    Attributes:
        hf_class: Name of the class in `transformers`.
        features: Names of OPTIONAL_FEATURES that the class supports.
        fixed: Features that the class always has, with their values.
        hf_defaults: Values that the class assumes for fields that a config.json lacks.
        default_theta: RoPE base that the class assumes.
        aliases: Other names in a config.json, with those in COMMON_FIELDS.
        activation_key: Name of the activation's key in a config.json.
        not_supported: Fields of a config.json for features of the class that the network lacks,
            with their values if not used.
        not_stated: Fields that a config.json of the class does not have, among those of all
            families.
    """

    hf_class: ClassVar[str]
    features: ClassVar[frozenset[str]] = frozenset()
    fixed: ClassVar[Mapping[str, Any]] = {}
    hf_defaults: ClassVar[Mapping[str, Any]] = {}
    default_theta: ClassVar[float] = 10_000.0
    aliases: ClassVar[Mapping[str, str]] = {}
    activation_key: ClassVar[str] = "hidden_act"
    not_supported: ClassVar[Mapping[str, Any]] = {}
    not_stated: ClassVar[frozenset[str]] = frozenset()

    def check(self, model: Mapping[str, Any]) -> None:
        """Raises InputError if the class lacks a feature of the model, or requires another value.

        Args:
            model: The fields of a `ModelConfig`.
        """
        name = model["architecture"]
        for feature, absent in OPTIONAL_FEATURES.items():
            value = model[feature]
            if feature in self.fixed and value != self.fixed[feature]:
                raise InputError(
                    f"model.{feature}={value}: expected {self.fixed[feature]} with "
                    f"model.architecture={name}. Change one of them."
                )
            if value != absent and feature not in self.features | self.fixed.keys():
                raise InputError(
                    f"model.{feature}={value}: model.architecture={name} does not support this "
                    "feature. Remove the key, or choose another architecture."
                )

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the fields of a config.json that are not in COMMON_FIELDS or those of RoPE."""
        return {}

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the optional features of a model from its config.json, defaults included.

        Raises InputError if the network does not support what the config states.
        """
        return {}

    def rope_to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the rotary positions as fields of a config.json."""
        scaling = model["rope_scaling"]
        scaled = {"rope_scaling": write_scaling(scaling)} if scaling.type else {}
        return {"rope_theta": model["rope_theta"], **scaled}

    def rope_from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the rotary positions as fields of `ModelConfig`, from those of a config.json."""
        return read_rope(config, self.default_theta)

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model.

        Raises InputError if there is none.
        """
        raise InputError(
            f"model.architecture={model['architecture']}: llama.cpp does not have this family. "
            "Serve the folder with transformers or vLLM."
        )

    def hf_name(self, name: str) -> str:
        """Returns the name of a decoder's parameter in the family's checkpoints."""
        return name if name.startswith("lm_head.") else f"model.{name}"
