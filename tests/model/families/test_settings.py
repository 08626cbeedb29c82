"""Fields of a config.json mean what the class in transformers takes them for, in both forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from model.config import ModelConfig
from model.families.folder import read_config
from model.layer_pattern import layer_positions

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 11}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", WINDOWED | {"max_window_layers": 2}),
    ("qwen2", WINDOWED | {"max_window_layers": 0}),
    ("qwen2", {"sliding_window": 11, "max_window_layers": 0}),
    (
        "qwen2",
        WINDOWED
        | {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"]},
    ),
    ("qwen3", {"head_dim": 16, **WINDOWED, "max_window_layers": 2}),
    ("qwen3", {"head_dim": 16, "sliding_window": 11, "max_window_layers": 0}),
    ("smollm3", {}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 0, 1, 1]}),
    ("smollm3", WINDOWED),
    ("smollm3", WINDOWED | {"no_rope_layers": [1, 1, 1, 1, 1]}),
    ("smollm3", {"sliding_window": 11}),
    ("smollm3", {"tie_word_embeddings": False, "rope_theta": 7e4}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}}),
    ("llama", {"rope_parameters": {"rope_theta": 5e3}, "rope_theta": 9e3}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 5e3}),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 5e3}),
]
FULL_SIZE = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}


def of(stock: Any, config: ModelConfig) -> None:
    """Expects that a config is what the class in transformers made of the same file."""
    kinds = getattr(stock, "layer_types", None) or ["full_attention"] * 5
    assert [layer.window for layer in config.layers] == [
        stock.sliding_window if kind == "sliding_attention" else None for kind in kinds
    ]
    rotary = getattr(stock, "no_rope_layers", [1] * 5)[:5]
    assert layer_positions(config.rope_pattern, 5) == [bool(layer) for layer in rotary]
    assert config.rope_theta == stock.rope_parameters["rope_theta"]
    kind = stock.rope_parameters["rope_type"]
    assert (config.rope_scaling.type or "default") == kind
    if config.rope_scaling.type:
        assert config.rope_scaling.factor == stock.rope_parameters["factor"]
        assert config.rope_scaling.original_max_seq_len == stock.rope_parameters.get(
            "original_max_position_embeddings"
        )
    assert config.tie_embeddings == stock.tie_word_embeddings


@pytest.mark.parametrize(("family", "settings"), SETTINGS, ids=str)
def test_an_import_is_what_transformers_reads(family, settings, tmp_path):
    stored = SHAPE | settings | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    of(transformers.AutoConfig.from_pretrained(tmp_path), read_config(tmp_path))


@pytest.mark.parametrize(("family", "settings"), SETTINGS, ids=str)
def test_what_transformers_wrote_is_what_it_read(family, settings, tmp_path):
    """Version 5 writes other fields than a file of version 4 has."""
    stored = SHAPE | settings | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    expected = read_config(tmp_path)
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert read_config(tmp_path) == expected


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "smollm3", "llama"])
def test_missing_fields_have_the_values_of_the_class(family, tmp_path):
    stored = FULL_SIZE | {"model_type": family, "num_attention_heads": 32, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(tmp_path)
        )
    config = read_config(tmp_path)
    assert theirs.model.layers[0].self_attn.k_proj.weight.shape == (config.kv_size, 64)
    assert (theirs.model.layers[0].self_attn.k_proj.bias is not None) == config.qkv_bias
    of(theirs.config, config)
