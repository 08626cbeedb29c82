"""Adapters state exactly what their Hugging Face classes have."""

from __future__ import annotations

import pytest
import transformers

from model.families import FAMILIES
from model.families.family import COMMON_FIELDS, OPTIONAL_FEATURES
from model.families.folder import COMMON_DEFAULTS, hf_config
from tests.model.shapes import tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_the_class(name):
    family = FAMILIES[name]
    stock = getattr(transformers, family.hf_class.replace("ForCausalLM", "Config"))
    assert stock.model_type == name
    for field, value in (COMMON_DEFAULTS | dict(family.hf_defaults)).items():
        found = getattr(stock, field, None)
        assert found == value, field
    assert stock.default_theta == family.default_theta


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_states_only_fields_of_the_class(name):
    family = FAMILIES[name]
    stock = getattr(transformers, family.hf_class.replace("ForCausalLM", "Config"))()
    config = tiny(architecture=name, sliding_window=None, **family.fixed)
    # The classes that lack `head_dim` and `rope_theta` read them if they are there.
    known = {*stock.to_dict(), "head_dim", "rope_theta", "torch_dtype"}
    assert hf_config(config, {"eos_token_id": 2}, "float32").keys() <= known


def test_features_are_fields_of_the_config():
    fields = vars(tiny())
    assert fields.keys() >= OPTIONAL_FEATURES.keys() | COMMON_FIELDS.keys()
    for family in FAMILIES.values():
        assert family.features | family.fixed.keys() <= OPTIONAL_FEATURES.keys()
