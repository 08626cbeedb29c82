"""LFM3 with attention in all layers: norms before and after, QK-norm per head, gated heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from conf.errors import InputError
from model.families.family import Family
from model.families.fields import Fields
from model.families.hf_rope_kinds import check_kinds, read_kinds, write_kinds
from model.families.layer_types import FULL, SLIDING, types_of, windows_of

NAMES = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "post_operator_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffn_norm",
    "mlp": "feed_forward",
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
    "g_proj": "gate_proj",
}
"""Names of a block's modules in the checkpoints of the class, by their names in the network.

The class itself renames `self_attn.gate_proj` when it loads a checkpoint.
"""
DEFAULT_LOCAL_THETA = 10_000.0


class Lfm3(Family):
    """Adapter of `Lfm3ForCausalLM`; its layers of type `conv` are not in the network."""

    hf_class = "Lfm3ForCausalLM"
    features = frozenset({"sliding_window", "window_pattern", "local_rope_theta", "head_gates"})
    fixed: ClassVar[Mapping[str, Any]] = {"norm_order": "both", "qk_norm": True}
    not_stated = frozenset({"hidden_act", "rms_norm_eps"})
    default_theta = 1_000_000.0
    aliases: ClassVar[Mapping[str, str]] = {"norm_eps": "rms_norm_eps"}
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "sliding_window": 256,
        "layer_types": None,
        "use_sandwich_norm": True,
        "use_attention_gate": True,
    }

    def check(self, model: Mapping[str, Any]) -> None:
        """Raises InputError if the class lacks a feature of the model, or needs another value."""
        super().check(model)
        check_kinds(model)
        if model["rope_scaling"].type:
            raise InputError(
                f"model.rope_scaling.type={model['rope_scaling'].type}: "
                f"model.architecture={model['architecture']} does not support scaled positions. "
                "Remove model.rope_scaling, or choose another architecture."
            )

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the fields of the class."""
        return {
            "attention_bias": False,
            "norm_eps": model["rms_norm_eps"],
            "sliding_window": model["sliding_window"] or model["max_seq_len"],
            "layer_types": types_of(model),
            "use_sandwich_norm": True,
            "use_attention_gate": model["head_gates"],
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the features of a model from its config.json."""
        if not config["use_sandwich_norm"]:
            raise InputError(
                "use_sandwich_norm=false is not supported. Give a model with norms before and "
                "after attention and MLP."
            )
        types = config["layer_types"]
        if types is None or "conv" in types:
            raise InputError(
                f"layer_types={types}: layers of type conv are not supported. Give a model whose "
                f"layers are all '{FULL}' or '{SLIDING}'."
            )
        found = {
            **self.fixed,
            **windows_of(types, config["num_hidden_layers"], config["sliding_window"]),
            "head_gates": bool(config["use_attention_gate"]),
        }
        return found if SLIDING in types else {**found, "local_rope_theta": None}

    def rope_to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of a config.json."""
        return write_kinds(model)

    def rope_from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of `ModelConfig`.

        Without any, the class rotates half of each head in layers with full attention.
        """
        if not config.get("rope_parameters"):
            raise InputError(
                "rope_parameters are missing, so half of each head is rotated, which is not "
                "supported. Give a model that rotates whole heads."
            )
        return read_kinds(config, self.default_theta, DEFAULT_LOCAL_THETA)

    def hf_name(self, name: str) -> str:
        """Returns the name of a decoder's parameter in the checkpoints of the class."""
        if name == "norm.weight":
            return "model.embedding_norm.weight"
        return super().hf_name(".".join(NAMES.get(part, part) for part in name.split(".")))
