"""OLMo 3 agrees with stock `Olmo3ForCausalLM` in both directions, in logits and gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import Olmo3Config, Olmo3ForCausalLM

from conf.errors import InputError
from model.families.folder import hf_config, read_config
from model.flops import parameters
from model.rope_scaling import RopeScaling
from tests.model.families.stock import SPECIAL, assert_exports, assert_imports
from tests.model.families.test_olmo2 import OLMO2
from tests.model.shapes import tiny
from tests.model.test_counts import load

OLMO3: dict[str, Any] = {
    **OLMO2,
    "architecture": "olmo3",
    "sliding_window": 17,
    "window_pattern": "LLLG",
    "num_layers": 4,
    "rope_theta": 5e5,
    "local_rope_theta": 5e5,
}
YARN = RopeScaling("yarn", 4.0, original_max_seq_len=32)
CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "yarn in full layers": {"rope_scaling": YARN, "num_heads": 6, "num_kv_heads": 2},
    "windows in all layers": {"window_pattern": None, "rope_scaling": YARN},
    "no windows": {"sliding_window": None, "window_pattern": None, "local_rope_theta": None},
}


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_stock_model(case, tmp_path):
    assert_exports(tiny(**OLMO3 | CASES[case]), tmp_path, Olmo3ForCausalLM)


SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rope_parameters": {"full_attention": {**SCALED, "rope_theta": 5e5}}},
        {"layer_types": ["full_attention"] * 5, "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_an_import_is_the_stock_model(settings, tmp_path):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 11,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    assert_imports(Olmo3ForCausalLM(Olmo3Config(**shape | settings)), tmp_path)


def test_the_published_model_is_that_of_the_choice():
    config = load("olmo3_7b")
    fields = hf_config(config, {}, "float32")
    with torch.device("meta"):
        theirs = Olmo3ForCausalLM(Olmo3Config(**fields))
    published = 7_298_011_136
    assert parameters(config) == sum(p.numel() for p in theirs.parameters()) == published
    windows = [layer.window for layer in config.layers]
    assert windows == [4096, 4096, 4096, None] * 8
    assert [layer.rope is not None and layer.rope.scaling is None for layer in config.layers] == [
        window is not None for window in windows
    ]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected an entry 'full_attention'"),
        (
            {"rope_parameters": {"sliding_attention": {**SCALED, "rope_theta": 5e5}}},
            "scaled positions in layers with the window are not supported",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}},
            "local_rope_theta=10000.0: expected 500000",
        ),
        ({"rope_parameters": None, "rope_theta": 1e4}, "transformers 4 and 5 compute different"),
        ({"layer_types": ["chunked_attention"] * 4}, "expected 4 entries"),
    ],
)
def test_what_the_network_does_not_have_is_refused(fields, sentence, tmp_path):
    stored = hf_config(tiny(**OLMO3), SPECIAL, "float32") | fields
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=sentence):
        read_config(tmp_path)


def test_layers_with_the_window_need_a_base():
    with pytest.raises(InputError, match="local_rope_theta=None: layers with the window"):
        tiny(**OLMO3 | {"local_rope_theta": None})
    with pytest.raises(InputError, match="no layer has a sliding window"):
        tiny(**OLMO3 | {"sliding_window": None, "window_pattern": None})
