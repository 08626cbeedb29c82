"""Folders that transformers 4 and 5 both load: what each of them reads is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from model.families.hf_forms import config_in_both_forms, special_tokens
from model.families.model_files import ModelFiles
from model.remap_vocab import RemapVocabConfig, remap_vocab
from tests.corpora import byte_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
IDS = torch.arange(3, 60)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama with scaled RoPE and a tokenizer with more special tokens, saved by version 5."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rope_parameters=LLAMA3 | {"rope_theta": 500_000.0}, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "five")
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|end|>"],
    ).save_pretrained(tmp_path / "five")
    return tmp_path / "five"


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def test_what_version_5_saves_gets_the_form_of_version_4(folder):
    before, text = logits(folder), AutoTokenizer.from_pretrained(folder)("a<|end|></s>").input_ids
    assert "rope_theta" not in read(folder, "config.json")
    ModelFiles.read(folder).write(folder)
    config = read(folder, "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500_000.0
    assert config["rope_scaling"] == LLAMA3
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    settings = read(folder, "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|end|>"]
    assert "extra_special_tokens" not in settings  # a list there ends version 4
    assert read(folder, "special_tokens_map.json") == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<|end|>"],
    }
    assert torch.equal(logits(folder), before)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a<|end|></s>").input_ids == text
    assert "<|end|>" in tokenizer.all_special_tokens


def test_remap_vocab_writes_both_forms(folder, tmp_path):
    """A model that version 5 saved, with the tokenizer of a folder or of a single file."""
    for name, tokenizer in {"a": folder, "b": folder / "tokenizer.json"}.items():
        out = tmp_path / name
        remap_vocab(RemapVocabConfig(str(folder), str(tokenizer), str(out)))
        config, settings = read(out, "config.json"), read(out, "tokenizer_config.json")
        assert (config["rope_theta"], config["rope_scaling"]) == (500_000.0, LLAMA3)
        assert config["torch_dtype"] == config["dtype"] == "bfloat16"
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert read(out, "special_tokens_map.json") == special_tokens(settings)
        assert settings["eos_token"] == "</s>"


@pytest.mark.parametrize(
    ("four", "five"),
    [
        ({"rope_theta": 1e4}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"rope_theta": 1e4, "rope_scaling": LLAMA3}, LLAMA3 | {"rope_theta": 1e4}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        ),
    ],
)
def test_the_form_of_version_4_gets_that_of_version_5(tmp_path, four, five):
    config = {"model_type": "llama", "torch_dtype": "float32", **four}
    both = config_in_both_forms(config)
    assert both == config | {"rope_parameters": five, "dtype": "float32"}
    assert config_in_both_forms(both).keys() == both.keys() | (
        {"rope_scaling"} if "rope_scaling" in four else set()
    )
    (tmp_path / "config.json").write_text(json.dumps(both))
    assert five.items() <= AutoConfig.from_pretrained(tmp_path).rope_parameters.items()


def test_rope_of_kinds_of_layers_has_the_names_of_version_4_too():
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    four = {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert config_in_both_forms({"rope_parameters": kinds}) == {"rope_parameters": kinds, **four}
