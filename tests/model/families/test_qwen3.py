"""Qwen3 agrees with stock `Qwen3ForCausalLM` in both directions, in logits and gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from conf.errors import InputError
from model.config import ModelConfig
from model.families import FAMILIES
from model.families.folder import HFWeights, hf_config, read_config, save_weights
from model.flops import parameters
from model.network import Decoder
from tests.model.shapes import initialize, tiny
from tests.model.test_counts import load

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SEQ = 96
QWEN3 = {"architecture": "qwen3", "qk_norm": True, "sliding_window": None}
CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "six heads, two keys": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 20},
    "five heads, one key": {"num_heads": 5, "num_kv_heads": 1, "head_dim": 16},
    "heads wider than the model": {"head_dim": 64, "rope_theta": 1e6},
    "a window in all layers": {"sliding_window": 17},
    "a window in the last layers": {
        "sliding_window": 17,
        "window_pattern": "GLL",
        "tie_embeddings": True,
    },
    "a window in two of three layers": {"sliding_window": 9, "window_pattern": "LGL"},
    "alternating windows": {"sliding_window": 30, "window_pattern": "LG", "num_layers": 4},
}


def batch(vocab_size: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, vocab_size, (2, SEQ), generator=torch.Generator().manual_seed(1))
    return tokens, torch.cat((tokens[:, 1:], torch.full((2, 1), -100)), dim=1)


def assert_same(found: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Holds the distance of two tensors against the size of the second."""
    assert found is not None
    assert expected is not None
    assert torch.dist(found, expected) < 1e-5 * expected.norm(), what


def assert_agree(ours: Decoder, theirs: Qwen3ForCausalLM) -> None:
    tokens, labels = batch(ours.config.vocab_size)
    expected = theirs(tokens).logits
    assert_same(ours(tokens), expected, "logits")
    loss = ours(tokens, labels)
    assert isinstance(loss, Tensor)
    loss.backward()
    F.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_same(parameter.grad, gradients[FAMILIES["qwen3"].hf_name(name)], name)


def export(config: ModelConfig, folder: Any) -> Decoder:
    model = Decoder(config)
    initialize(model, config, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # norms are ones at first, which would hide that one is not there
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    (folder / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    save_weights(folder, iter(model.named_parameters()), torch.float32, FAMILIES["qwen3"])
    return model


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_stock_model(case, tmp_path):
    config = tiny(**QWEN3 | CASES[case])
    ours = export(config, tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    theirs, report = loaded
    assert type(theirs) is Qwen3ForCausalLM
    assert not report["unexpected_keys"]
    assert not set(report["missing_keys"]) - {"lm_head.weight"}
    assert_agree(ours, theirs)
    again = read_config(tmp_path)
    config.name = again.name
    assert again == config


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_attention_heads": 6, "num_key_value_heads": 2},
        {"num_attention_heads": 5, "num_key_value_heads": 1},
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 0},
        {"sliding_window": 11, "max_window_layers": 0},
    ],
    ids=str,
)
def test_an_import_is_the_stock_model(settings, tmp_path):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
    }
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape | settings))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    weights = HFWeights(tmp_path, FAMILIES["qwen3"])
    ours = Decoder(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights.read(name))
    assert_agree(ours, theirs)


def test_the_published_model_is_that_of_the_choice():
    config = load("qwen3_0_6b")
    fields = hf_config(config, {}, "float32")
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(Qwen3Config(**fields))
    published = 596_049_920
    assert parameters(config) == sum(p.numel() for p in theirs.parameters()) == published


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "RoPE of type dynamic"),
        ({"layer_types": ["sliding_attention"] * 3}, "requires use_sliding_window=true and"),
        ({"layer_types": ["linear_attention"] * 3}, "expected 3 entries, each 'full_attention' or"),
        ({"layer_types": ["full_attention"] * 2}, "expected 3 entries, each 'full_attention' or"),
    ],
)
def test_what_the_network_has_not_is_refused(fields, sentence, tmp_path):
    stored = hf_config(tiny(**QWEN3), SPECIAL, "float32") | fields
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=sentence) as refused:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            QWEN3 | {"qk_norm": False},
            "model.qk_norm=False: expected True with model.architecture=qwen3",
        ),
        ({"qk_norm": True}, "model.qk_norm=True: model.architecture=mistral does not support this"),
        ({"window_pattern": "LG"}, "model.window_pattern=LG: model.architecture=mistral does"),
    ],
)
def test_features_of_other_families_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**changes)
