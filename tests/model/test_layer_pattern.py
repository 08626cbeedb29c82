"""Patterns of windowed layers: repeated over the layers, kept in their shortest form, checked."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from conf.errors import InputError
from model.attention.mask import attention_masks
from model.flops import flops_per_token, matmul_parameters, mean_keys
from model.layer_pattern import layer_windows, shortest_pattern
from tests.model.shapes import tiny

QWEN3 = {"architecture": "qwen3", "qk_norm": True}


def test_a_pattern_is_repeated_over_the_layers():
    assert layer_windows("LLLG", 6, 8) == [8, 8, 8, None, 8, 8]
    assert layer_windows(None, 2, 8) == [8, 8]
    assert layer_windows(None, 2, None) == [None, None]


def test_the_shortest_pattern_gives_the_same_layers():
    for layers in range(1, 7):
        for letters in product("LG", repeat=layers):
            windows = layer_windows("".join(letters), layers, 8)
            shortest = shortest_pattern(windows)
            if len(set(letters)) == 1:
                assert shortest is None
                continue
            assert shortest is not None
            assert layer_windows(shortest, layers, 8) == windows
            shorter = [
                "".join(word)
                for length in range(1, len(shortest))
                for word in product("LG", repeat=length)
            ]
            assert all(layer_windows(word, layers, 8) != windows for word in shorter)


def test_a_model_keeps_the_shortest_form():
    assert tiny(**QWEN3, window_pattern="LGL").window_pattern == "LG"
    assert tiny(**QWEN3, window_pattern="LLL").window_pattern is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window_pattern": "LX"}, "model.window_pattern=LX: expected letters L"),
        ({"window_pattern": ""}, "model.window_pattern=: expected letters L"),
        ({"window_pattern": "LGLG"}, "expected at most model.num_layers=3 letters, found 4"),
        (
            {"window_pattern": "LG", "sliding_window": None},
            "requires model.sliding_window, which is null",
        ),
        ({"window_pattern": "GG"}, "no layer has a sliding window"),
    ],
)
def test_a_pattern_that_says_nothing_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**QWEN3 | changes)


def test_flops_count_the_keys_of_each_layer():
    config = tiny(**QWEN3, window_pattern="LLG", num_layers=4)
    keys = 3 * mean_keys(100, 17) + mean_keys(100, None)
    expected = 6 * matmul_parameters(config) + 12 * config.query_size * keys
    assert flops_per_token(config, 100) == pytest.approx(expected, rel=1e-12)


def test_layers_of_one_window_share_a_mask():
    masks = attention_masks("sdpa", 1, 64, {8, 64, 100, None}, None, torch.device("cpu"))
    assert masks[64] is masks[100] is masks[None]
    assert masks[8] is not masks[None]
    assert masks[None].blocks[0].dense_mask is None
