"""Tables of rotary positions are those of transformers to the last bit, for each type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conf.errors import InputError
from model.families.hf_rope import read_settings, write_scaling
from model.rope import attention_factor, rope_table
from model.rope_scaling import Rope, RopeScaling
from tests.model.shapes import tiny

HEAD_DIM, POSITIONS = 24, 4096
SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 32.0, 64),
    "llama3, published": RopeScaling("llama3", 32.0, 8192),
    "llama3, own band": RopeScaling("llama3", 8.0, 256, low_freq_factor=2.0, high_freq_factor=3.0),
    "yarn": RopeScaling("yarn", 4.0, 64),
    "yarn, published": RopeScaling("yarn", 8.0, 8192, attention_factor=1.2079441541679836),
    "yarn, own ramp": RopeScaling("yarn", 8.0, 1024, beta_fast=16.0, beta_slow=2.0, truncate=False),
    "yarn, one pair": RopeScaling("yarn", 4.0, 8),
}


def stock(settings: dict[str, Any], head_dim: int = HEAD_DIM) -> LlamaRotaryEmbedding:
    """Returns the rotary embedding of stock Llama with these `rope_parameters`."""
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=4 * head_dim,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            rope_parameters=settings,
        )
    )


@pytest.mark.parametrize("theta", [10_000.0, 5e5])
@pytest.mark.parametrize("name", SCALINGS)
def test_a_table_is_that_of_transformers(name, theta):
    scaling = SCALINGS[name]
    settings = {"rope_type": "default"} if scaling is None else write_scaling(scaling)
    positions = torch.arange(POSITIONS)
    expected = stock(settings | {"rope_theta": theta})(torch.zeros(1), positions[None])
    found = rope_table(positions, HEAD_DIM, Rope(theta, scaling), torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs[0])


def test_every_scaling_changes_the_table():
    positions = torch.arange(POSITIONS)
    cosines = [
        rope_table(positions, HEAD_DIM, Rope(1e4, s), torch.float32)[0] for s in SCALINGS.values()
    ]
    for number, first in enumerate(cosines):
        for second in cosines[number + 1 :]:
            assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.5, "original_max_position_embeddings": 64},
    ],
    ids=str,
)
def test_settings_mean_what_transformers_takes_them_for(settings):
    config = {"max_position_embeddings": POSITIONS, "rope_theta": 1e4}
    found = read_settings(settings, config, 1e4)
    theirs = stock(dict(settings) | {"rope_theta": 1e4})
    scaling = found["rope_scaling"]
    assert attention_factor(scaling) == pytest.approx(theirs.attention_scaling, rel=1e-12)
    positions = torch.arange(POSITIONS)
    cos, _ = rope_table(positions, HEAD_DIM, Rope(1e4, scaling), torch.float32)
    expected, _ = theirs(torch.zeros(1), positions[None])
    torch.testing.assert_close(cos, expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "sentence"),
    [
        ({"type": "dynamic", "factor": 2.0}, "model.rope_scaling.type=dynamic"),
        ({"type": "linear", "factor": 0.5}, "factor=0.5: expected 1 or more"),
        ({"type": "yarn", "factor": 2.0}, "original_max_seq_len=None: expected the number of"),
        ({"type": "linear", "factor": 2.0, "truncate": False}, "type=linear does not have this"),
        (
            {"type": "llama3", "factor": 2.0, "original_max_seq_len": 8, "low_freq_factor": 5.0},
            "low_freq_factor=5.0: expected more than 0 and less than",
        ),
        (
            {"type": "yarn", "factor": 2.0, "original_max_seq_len": 8, "attention_factor": 0.0},
            "attention_factor=0.0: expected more than 0",
        ),
    ],
)
def test_an_invalid_scaling_is_refused(scaling, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(rope_scaling=scaling)


def test_layers_without_positions_are_described():
    config = tiny(
        architecture="smollm3",
        sliding_window=None,
        rope_pattern="RRN",
        rope_theta=5e6,
        rope_scaling=RopeScaling("yarn", 2.0, 64),
    )
    assert config.describe_positions() == (
        "RoPE base 5e+06 with yarn scaling by 2 from 64 positions in 2 of 3 layers, "
        "no positions in 1 of 3 layers"
    )
    assert tiny().describe_positions() == "RoPE base 10,000"


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("RX", "expected letters R"), ("RRRN", "expected at most model.num_layers=3 letters")],
)
def test_an_invalid_pattern_of_positions_is_refused(pattern, sentence):
    with pytest.raises(InputError, match=f"model.rope_pattern={pattern}: {sentence}"):
        tiny(architecture="smollm3", sliding_window=None, rope_pattern=pattern)


def test_equal_patterns_of_positions_are_equal_configs():
    def make(pattern):
        return tiny(architecture="smollm3", sliding_window=None, rope_pattern=pattern)

    assert make("R") == make(None)
    assert make("NNN") == make("N") != make(None)
    assert make("RNR").rope_pattern == "RN"
