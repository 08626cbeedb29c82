"""Gemma 3, text only: norms before and after, two RoPE bases, GeGLU, scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from conf.errors import InputError
from model.families.family import Family
from model.families.fields import Fields
from model.families.gguf import Graph
from model.families.hf_rope_kinds import check_kinds, read_kinds, write_kinds
from model.families.layer_types import FULL, SLIDING, types_of, windows_of


class Gemma3(Family):
    """Adapter of `Gemma3ForCausalLM`."""

    hf_class = "Gemma3ForCausalLM"
    features = frozenset(
        {
            *("sliding_window", "window_pattern", "local_rope_theta"),
            *("query_pre_attn_scalar", "logit_softcap"),
        }
    )
    fixed: ClassVar[Mapping[str, Any]] = {
        "norm_order": "both",
        "zero_centered_norms": True,
        "qk_norm": True,
        "activation": "gelu_tanh",
        "scale_embeddings": True,
    }
    activation_key = "hidden_activation"
    default_theta = 1_000_000.0
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "layer_types": None,
        "final_logit_softcapping": None,
        "rope_local_base_freq": 10_000.0,
    }
    not_supported: ClassVar[Mapping[str, Any]] = {
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }

    def check(self, model: Mapping[str, Any]) -> None:
        """Raises InputError if the class lacks a feature of the model, or requires another value.

        The class stores the query scale as an integer, and refuses hidden sizes that are not
        multiples of the number of heads.
        """
        super().check(model)
        check_kinds(model)
        scalar = model["query_pre_attn_scalar"]
        if scalar is not None and scalar != int(scalar):
            raise InputError(
                f"model.query_pre_attn_scalar={scalar}: expected an integer with "
                f"model.architecture={model['architecture']}."
            )
        if model["hidden_size"] % model["num_heads"]:
            raise InputError(
                f"model.hidden_size={model['hidden_size']}: expected a multiple of "
                f"model.num_heads={model['num_heads']} with "
                f"model.architecture={model['architecture']}. Change one of them."
            )

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the fields of the class. It always needs a window."""
        return {
            "attention_bias": False,
            "query_pre_attn_scalar": int(model["query_pre_attn_scalar"] or model["head_dim"]),
            "sliding_window": model["sliding_window"] or model["max_seq_len"],
            "layer_types": types_of(model),
            "final_logit_softcapping": model["logit_softcap"],
            "attn_logit_softcapping": None,
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the features of a model from its config.json.

        Without `layer_types`, every sixth layer (or every `sliding_window_pattern`-th) has full
        attention.
        """
        layers, every = config["num_hidden_layers"], config["sliding_window_pattern"]
        types = config["layer_types"] or [
            SLIDING if (layer + 1) % every else FULL for layer in range(layers)
        ]
        found = {
            **self.fixed,
            **windows_of(types, layers, config["sliding_window"]),
            "query_pre_attn_scalar": float(config["query_pre_attn_scalar"]),
            "logit_softcap": config["final_logit_softcapping"],
        }
        return found if SLIDING in types else {**found, "local_rope_theta": None}

    def rope_to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of a config.json."""
        local = model["local_rope_theta"]
        return {**write_kinds(model), **({} if local is None else {"rope_local_base_freq": local})}

    def rope_from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of `ModelConfig`."""
        return read_kinds(config, self.default_theta, config["rope_local_base_freq"])

    def gguf(self, model: Mapping[str, Any]) -> Graph:
        """Returns the graph of llama.cpp that computes the model."""
        return Graph("gemma3", has_windows=True, caps_logits=True)
