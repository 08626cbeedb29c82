"""The choices in conf/model are the published models: the same network, as large to the number."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers

from model.families.folder import hf_config, read_config
from model.families.hf_forms import config_in_both_forms
from model.flops import parameters
from tests.model.families.published import PUBLISHED
from tests.model.test_counts import load


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_choice_is_the_import_of_the_published_model(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name][1]))
    assert replace(read_config(tmp_path), name=name) == load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_choice_is_as_large_as_the_published_model(name):
    config = load(name)
    fields = config_in_both_forms(hf_config(config, {"pad_token_id": None}, "float32"))
    stock = transformers.AutoConfig.for_model(**fields)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(stock)
    published, _ = PUBLISHED[name]
    assert parameters(config) == sum(p.numel() for p in theirs.parameters()) == published
