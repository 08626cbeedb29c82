"""Gemma 3 agrees with stock `Gemma3ForCausalLM` in both directions, in logits and gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from conf.errors import InputError
from model.families.folder import hf_config, read_config
from model.flops import parameters
from model.rope_scaling import RopeScaling
from tests.model.families.stock import SPECIAL, assert_exports, assert_imports
from tests.model.shapes import tiny
from tests.model.test_counts import load

GEMMA3: dict[str, Any] = {
    "architecture": "gemma3_text",
    "sliding_window": 17,
    "window_pattern": "LLLLLG",
    "num_layers": 6,
    "norm_order": "both",
    "zero_centered_norms": True,
    "qk_norm": True,
    "activation": "gelu_tanh",
    "scale_embeddings": True,
    "rope_theta": 1e6,
    "local_rope_theta": 1e4,
    "tie_embeddings": True,
    "rms_norm_eps": 1e-6,
}
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "query scale, wide heads": {"query_pre_attn_scalar": 40.0, "head_dim": 36, "num_kv_heads": 1},
    "bounded logits": {"logit_softcap": 3.0},
    "scaled positions": {"rope_scaling": RopeScaling("linear", 8.0), "num_layers": 7},
    "windows in all layers": {"window_pattern": None, "num_layers": 2},
    "no windows": {
        "sliding_window": None,
        "window_pattern": None,
        "local_rope_theta": None,
        "num_layers": 2,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_stock_model(case, tmp_path):
    assert_exports(tiny(**GEMMA3 | CASES[case]), tmp_path, Gemma3ForCausalLM)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": False, "final_logit_softcapping": 2.0},
        {"sliding_window_pattern": 2, "query_pre_attn_scalar": 50},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
        {"layer_types": ["full_attention"] * 7},
    ],
    ids=str,
)
def test_an_import_is_the_stock_model(settings, tmp_path):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 67,
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "sliding_window": 11,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    assert_imports(Gemma3ForCausalLM(Gemma3TextConfig(**shape | settings)), tmp_path)


@pytest.mark.parametrize(
    ("name", "published"), [("gemma3_270m", 268_098_176), ("gemma3_1b", 999_885_952)]
)
def test_the_published_model_is_that_of_the_choice(name, published):
    config = load(name)
    with torch.device("meta"):
        theirs = Gemma3ForCausalLM(Gemma3TextConfig(**hf_config(config, {}, "float32")))
    assert parameters(config) == sum(p.numel() for p in theirs.parameters()) == published


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_activation": "silu"}, "hidden_activation=silu is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not"),
        ({"vision_config": {"hidden_size": 8}}, "vision_config is not supported"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            "RoPE of type dynamic is not supported",
        ),
    ],
)
def test_what_the_network_does_not_have_is_refused(fields, sentence, tmp_path):
    stored = hf_config(tiny(**GEMMA3), SPECIAL, "float32") | fields
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=sentence):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale_embeddings": False}, "model.scale_embeddings=False: expected True"),
        ({"query_pre_attn_scalar": 20.5}, "model.query_pre_attn_scalar=20.5: expected an integer"),
        ({"num_heads": 5, "num_kv_heads": 1, "head_dim": 16}, "model.hidden_size=96: expected a"),
        ({"qkv_bias": True}, "model.qkv_bias=True: model.architecture=gemma3_text does not"),
    ],
)
def test_what_the_class_does_not_have_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**GEMMA3 | changes)
