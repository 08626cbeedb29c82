"""OLMo 2 agrees with stock `Olmo2ForCausalLM` in both directions, in logits and gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from conf.errors import InputError
from model.families.folder import hf_config, read_config
from model.flops import parameters
from tests.model.families.stock import SPECIAL, assert_exports, assert_imports
from tests.model.shapes import tiny
from tests.model.test_counts import load

OLMO2: dict[str, Any] = {
    "architecture": "olmo2",
    "sliding_window": None,
    "norm_order": "after",
    "qk_norm": True,
    "qk_norm_width": "projection",
}
CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "six heads, two keys": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 20},
    "five heads, one key": {"num_heads": 5, "num_kv_heads": 1, "head_dim": 16},
    "heads wider than the model": {"head_dim": 64, "rope_theta": 5e5, "rms_norm_eps": 1e-6},
}


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_stock_model(case, tmp_path):
    assert_exports(tiny(**OLMO2 | CASES[case]), tmp_path, Olmo2ForCausalLM)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        {"num_key_value_heads": None, "rope_parameters": {"rope_theta": 5e5}},
    ],
    ids=str,
)
def test_an_import_is_the_stock_model(settings, tmp_path):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    assert_imports(Olmo2ForCausalLM(Olmo2Config(**shape | settings)), tmp_path)


def test_the_published_model_is_that_of_the_choice():
    config = load("olmo2_1b")
    with torch.device("meta"):
        theirs = Olmo2ForCausalLM(Olmo2Config(**hf_config(config, {}, "float32")))
    published = 1_484_916_736
    assert parameters(config) == sum(p.numel() for p in theirs.parameters()) == published


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_the_network_does_not_have_is_refused(fields, sentence, tmp_path):
    stored = hf_config(tiny(**OLMO2), SPECIAL, "float32") | fields
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=sentence) as refused:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)


@pytest.mark.parametrize("key", ["norm_order", "qk_norm", "qk_norm_width"])
def test_other_norms_are_refused(key):
    with pytest.raises(InputError, match=rf"model.{key}=.*: expected .*architecture=olmo2"):
        tiny(**{name: value for name, value in OLMO2.items() if name != key})


@pytest.mark.parametrize(
    "feature",
    [
        {"norm_order": "both"},
        {"zero_centered_norms": True},
        {"query_pre_attn_scalar": 64.0},
        {"activation": "gelu_tanh"},
        {"scale_embeddings": True},
        {"logit_softcap": 30.0},
    ],
    ids=str,
)
def test_other_families_refuse_the_feature(feature):
    (name,) = feature
    with pytest.raises(InputError, match=rf"model.{name}=.*architecture=mistral does not support"):
        tiny(**feature)
