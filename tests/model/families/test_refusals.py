"""A config.json with a feature that the network does not have is refused, with its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conf.errors import InputError
from model.families import FAMILIES
from model.families.folder import hf_config, read_config
from tests.model.families.cases import CASES, case_of
from tests.model.families.parity import SPECIAL

OF_ALL: list[tuple[dict[str, Any], str]] = [
    ({"attention_bias": True}, "attention_bias=True is not supported"),
    ({"mlp_bias": True}, "mlp_bias=True is not supported"),
    ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.* is not supported"),
    ({"hidden_act": "relu2", "hidden_activation": "relu2"}, "hidden_act.*=relu2 is not supported"),
]
ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "RoPE of type dynamic is not"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "RoPE of type longrope is not"),
    ({"rope_parameters": {"rope_type": "proportional"}}, "RoPE of type proportional is not"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ({"rope_scaling": {"rope_type": "linear"}}, "RoPE of type linear lacks factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "rope_parameters with an entry per kind of layer",
    ),
]
OF_FAMILIES: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2", {"use_mrope": True}, "use_mrope=True is not supported"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "requires use_sliding_window=true and"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "expected 4 entries, each"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "requires use_sliding_window=true and"),
    ("qwen3", {"layer_types": ["full_attention"] * 2}, "expected 4 entries, each 'full_attention'"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers=.*: expected an entry for each"),
    ("smollm3", {"layer_types": ["linear_attention"] * 4}, "expected 4 entries, each"),
]


def refuse(family, changes, sentence, folder):
    """Expects that the import of a model with these fields fails with a sentence."""
    stored = hf_config(case_of(family, next(iter(CASES[family]))), SPECIAL, "float32")
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        stored.pop(key, None)
    (folder / "config.json").write_text(json.dumps(stored | changes))
    with pytest.raises(InputError, match=sentence) as refused:
        read_config(folder)
    assert str(folder / "config.json") in str(refused.value)


@pytest.mark.parametrize(("changes", "sentence"), OF_ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_that_no_network_has_is_refused(family, changes, sentence, tmp_path):
    refuse(family, changes, sentence, tmp_path)


@pytest.mark.parametrize(("changes", "sentence"), ROPES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3"])
def test_a_rope_that_the_network_does_not_have_is_refused(family, changes, sentence, tmp_path):
    refuse(family, changes, sentence, tmp_path)


@pytest.mark.parametrize(("family", "changes", "sentence"), OF_FAMILIES)
def test_a_setting_of_a_family_is_refused(family, changes, sentence, tmp_path):
    refuse(family, changes, sentence, tmp_path)
