"""Every field of each class in transformers is read, refused by its name, or has no effect."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from conf.errors import InputError
from model.families import FAMILIES
from model.families.folder import hf_config, read_config
from model.families.hf_forms import config_in_both_forms
from tests.model.families.cases import case_of
from tests.model.families.parity import SPECIAL

TYPES = ["full_attention", "sliding_attention"] * 2
READ: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "max_position_embeddings": 77,
    "initializer_range": 0.3,
    "rms_norm_eps": 0.25,
    "norm_eps": 0.25,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "rope_theta": 77.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    "rope_local_base_freq": 77.0,
    "sliding_window": 5,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": TYPES[::-1],
    "no_rope_layers": [1, 0, 1, 1],
    "no_rope_layer_interval": 2,
    "use_attention_gate": True,
    "query_pre_attn_scalar": 3,
    "final_logit_softcapping": 3.0,
}
"""Fields that the network has, with a value that no base config has."""
REFUSED: dict[str, Any] = {
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "attention_bias": True,
    "mlp_bias": True,
    "attention_dropout": 0.25,
    "attn_logit_softcapping": 20.0,
    "use_bidirectional_attention": True,
    "use_sandwich_norm": False,
    "architectures": ["AnotherForSequenceClassification"],
    "quantization_config": {"quant_method": "bitsandbytes"},
    "per_layer_config": {"1": {"intermediate_size": 24}},
    "partial_rotary_factor": 0.5,
}
"""Fields for features that the network lacks, with a value that uses the feature."""
WITHOUT_EFFECT: dict[str, Any] = {
    "bos_token_id": 3,
    "eos_token_id": [3, 4],
    "pad_token_id": None,
    "use_cache": False,
    "pretraining_tp": 2,
    "conv_bias": True,
    "conv_L_cache": 3,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 8,
    "id2label": {"0": "no", "1": "yes"},
    "label2id": {"no": 0, "yes": 1},
    "problem_type": "regression",
    "transformers_version": "4.0.0",
}
"""Fields that the logits of the class do not depend on, and that the import ignores."""
OF_THE_CALL = {"return_dict", "is_encoder_decoder", "dtype"}
"""Fields about how a model is called, and the type of stored weights."""
OF_ALL = ("quantization_config", "per_layer_config", "partial_rotary_factor")
"""Features of any class that are not fields of it."""
FIRST: dict[str, dict[str, Any]] = {
    "hidden_size": {"head_dim": 14},
    "max_window_layers": {"layer_types": None},
    "use_sliding_window": {
        "use_sliding_window": False,
        "layer_types": None,
        "max_window_layers": 1,
        "no_rope_layers": [1, 0, 1, 1],
    },
    "no_rope_layer_interval": {"no_rope_layers": None},
}
"""Other fields that must have a value for a field to have an effect."""
ALONG: dict[str, dict[str, Any]] = {
    "num_hidden_layers": {"layer_types": TYPES[:2], "no_rope_layers": [1, 1]},
}
"""Other fields that must change with a field."""


def base_of(family: str) -> dict[str, Any]:
    """Returns a config.json with windows in two of four layers, if the class has such."""
    stored = hf_config(case_of(family, "untied"), SPECIAL, "float32")
    fields = CONFIG_MAPPING[family]().to_dict()
    if "layer_types" in fields:
        changed = {"layer_types": TYPES, "use_sliding_window": True}
        stored |= {key: value for key, value in changed.items() if key in stored}
        stored["layer_types"] = TYPES
    return stored | ({"sliding_window": 7} if "sliding_window" in fields else {})


def fields_of(family: str) -> set[str]:
    """Returns the names of all fields of a class, and of features that any class may have."""
    return {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])} | {*OF_ALL}


def read(folder, stored):
    (folder / "config.json").write_text(json.dumps(stored))
    return read_config(folder)


def before_and_after(family: str, field: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns two config.json that differ in a field that the network has."""
    value = READ[field]
    stored = base_of(family)
    if field == "rope_parameters":  # without the form of version 4, which is read first
        for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            stored.pop(key, None)
        if "full_attention" in (stored.get(field) or {}):
            value = dict.fromkeys(("full_attention", "sliding_attention"), value)
    stored |= {key: v for key, v in FIRST.get(field, {}).items() if key in stored}
    along = {key: v for key, v in ALONG.get(field, {}).items() if key in stored}
    return stored, stored | along | {field: value}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_class_is_known_here(family):
    assert fields_of(family) <= {*READ, *REFUSED, *WITHOUT_EFFECT, *OF_THE_CALL}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_that_the_network_has_is_read(family, tmp_path):
    for field in sorted(fields_of(family) & READ.keys()):
        before, after = before_and_after(family, field)
        assert read(tmp_path, before) != read(tmp_path, after), field


@pytest.mark.parametrize("family", FAMILIES)
def test_a_feature_that_the_network_lacks_is_refused_by_its_name(family, tmp_path):
    for field in sorted(fields_of(family) & REFUSED.keys()):
        with pytest.raises(InputError, match=f"config.json: {field}="):
            read(tmp_path, base_of(family) | {field: REFUSED[field]})


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_are_ignored_have_no_effect_in_transformers(family, tmp_path):
    stored = base_of(family)
    expected = read(tmp_path, stored)
    ignored = {field: WITHOUT_EFFECT[field] for field in fields_of(family) & WITHOUT_EFFECT.keys()}
    for field, value in ignored.items():
        assert read(tmp_path, stored | {field: value}) == expected, field
    assert torch.equal(logits(stored | ignored), logits(stored))


def logits(stored: dict[str, Any]) -> torch.Tensor:
    """Returns the logits of a random model that stock transformers makes from a config.json."""
    fields = config_in_both_forms(stored)
    settings = transformers.AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.arange(24)[None]).logits
