"""Adapters state exactly what their Hugging Face classes have."""

from __future__ import annotations

import re

import pytest
from transformers import CONFIG_MAPPING

from conf.errors import InputError
from model.families import FAMILIES
from model.families.family import COMMON_FIELDS, OPTIONAL_FEATURES
from model.families.folder import COMMON_DEFAULTS, hf_config
from tests.conftest import ROOT
from tests.model.shapes import tiny


def stock_default(stock, field):
    """Returns the value of a field in a config of the class that is made without arguments."""
    if field == "sliding_window_pattern":  # a name of version 4, which the class reads
        return stock()._sliding_window_pattern
    if field == "rope_local_base_freq":
        return stock().rope_parameters["sliding_attention"]["rope_theta"]
    if field == "default_theta" and isinstance(stock.default_theta, dict):
        return stock.default_theta["global"]
    return getattr(stock, field, None)


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_the_class(name):
    family, stock = FAMILIES[name], CONFIG_MAPPING[name]
    stated = {**COMMON_DEFAULTS, **family.hf_defaults, "default_theta": family.default_theta}
    for field, value in stated.items():
        assert stock_default(stock, field) == value, field


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_states_only_fields_of_the_class(name):
    family = FAMILIES[name]
    config = tiny(architecture=name, sliding_window=None, **family.fixed)
    # The classes that lack `head_dim` and `rope_theta` read them if they are there.
    known = {*CONFIG_MAPPING[name]().to_dict(), "head_dim", "rope_theta", "torch_dtype"}
    assert hf_config(config, {"eos_token_id": 2}, "float32").keys() <= known


def test_features_are_fields_of_the_config():
    fields = vars(tiny())
    assert fields.keys() >= OPTIONAL_FEATURES.keys() | COMMON_FIELDS.keys()
    for family in FAMILIES.values():
        assert family.features | family.fixed.keys() <= OPTIONAL_FEATURES.keys()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "qwen3", "qk_norm": False},
            "model.qk_norm=False: expected True with model.architecture=qwen3",
        ),
        ({"qk_norm": True}, "model.qk_norm=True: model.architecture=mistral does not support this"),
        ({"qkv_bias": True}, "model.qkv_bias=True: model.architecture=mistral does not support"),
        ({"rope_pattern": "RRN"}, "model.rope_pattern=RRN: model.architecture=mistral does not"),
        ({"local_rope_theta": 1e4}, "model.local_rope_theta=10000.0: model.architecture=mistral"),
        ({"window_pattern": "LG"}, "model.window_pattern=LG: model.architecture=mistral does"),
        ({"architecture": "qwen2"}, "model.qkv_bias=False: expected True with model.architecture"),
        ({"architecture": "llama"}, "model.sliding_window=17: model.architecture=llama does not"),
    ],
)
def test_features_of_other_families_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**changes)


def test_only_the_adapters_name_a_family():
    """Everything else asks for features, so that a family is one file and one line."""
    words = {*FAMILIES, *(family.hf_class for family in FAMILIES.values())}
    programs = r"(?!\.cpp|-server|-quantize)"  # of llama.cpp, which runs all families
    named = re.compile(rf"\b({'|'.join(words)})\b{programs}", re.IGNORECASE)
    folders = ("conf", "data_pipeline", "model", "pretrain", "finetune", "eval", "launch", "pages")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path.parent != ROOT / "model/families"
        for match in named.finditer(path.read_text())
    ]
    assert not found
