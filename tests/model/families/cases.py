"""Shapes in which each family is compared with its class in transformers.

A family needs an entry in `CASES`. Cases are odd on purpose: sizes that are not powers of two,
sequences of several windows, and each feature of the family alone and together.
"""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from model.families import FAMILIES
from tests.model.shapes import tiny

Changes = dict[str, Any]

SHAPE: Changes = {
    "vocab_size": 259,
    "hidden_size": 84,
    "intermediate_size": 131,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 2,
    "max_seq_len": 512,
    "sliding_window": None,
}
"""Head dim 14, three query heads per key-value head."""

ANY_FAMILY: dict[str, Changes] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "five heads, one key": {"num_heads": 5, "num_kv_heads": 1, "hidden_size": 80},
    "heads wider than the model": {"head_dim": 32, "rope_theta": 1e6},
}
LINEAR: Changes = {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 5e4}
LLAMA3: Changes = {
    "rope_scaling": {"type": "llama3", "factor": 8.0, "original_max_seq_len": 64},
    "rope_theta": 100.0,
}
YARN: Changes = {
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_seq_len": 128},
    "rope_theta": 100.0,
}
OWN_YARN: Changes = {
    "rope_scaling": {
        "type": "yarn",
        "factor": 2.5,
        "original_max_seq_len": 200,
        "attention_factor": 1.3,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "rope_theta": 300.0,
}
SCALED = {"linear RoPE": LINEAR, "llama3 RoPE": LLAMA3, "YaRN": YARN, "YaRN, own ramp": OWN_YARN}
WINDOWS: dict[str, Changes] = {
    "a window in all layers": {"sliding_window": 17},
    "a window in the last layers": {
        "sliding_window": 17,
        "window_pattern": "GGLL",
        "tie_embeddings": True,
    },
    "a window in three of four layers": {"sliding_window": 9, "window_pattern": "LLLG"},
    "windows and YaRN": {"sliding_window": 30, "window_pattern": "LG", **YARN},
}
OLMO3: Changes = {
    "sliding_window": 17,
    "window_pattern": "LLLG",
    "rope_theta": 5e5,
    "local_rope_theta": 5e5,
}
GEMMA3: Changes = {
    "sliding_window": 9,
    "window_pattern": "LLG",
    "rope_theta": 1e6,
    "local_rope_theta": 1e4,
}

TIED: Changes = {"tie_embeddings": True}

CASES: dict[str, dict[str, Changes]] = {
    "llama": {**ANY_FAMILY, **SCALED},
    "mistral": {
        **ANY_FAMILY,
        "a window": {"sliding_window": 17},
        "a window of two": {"sliding_window": 2},
        "a window and YaRN": {"sliding_window": 17, **YARN},
    },
    "qwen2": {**ANY_FAMILY, **WINDOWS, "YaRN": YARN, "linear RoPE": LINEAR},
    "qwen3": {**ANY_FAMILY, **WINDOWS, "YaRN": YARN},
    "olmo2": {**ANY_FAMILY, "llama3 RoPE": LLAMA3, "YaRN": YARN},
    "olmo3": {
        **ANY_FAMILY,
        "windows in three of four layers": OLMO3,
        "windows and YaRN on the others": {**OLMO3, **YARN, "local_rope_theta": 100.0},
        "windows in all layers": {**OLMO3, "window_pattern": None, "tie_embeddings": True},
    },
    "gemma3_text": {
        **ANY_FAMILY,
        "a RoPE for each kind of layer": GEMMA3,
        "scaled positions": {**GEMMA3, "rope_scaling": {"type": "linear", "factor": 8.0}},
        "query scale": {**GEMMA3, "query_pre_attn_scalar": 40.0, "tie_embeddings": True},
        "bounded logits": {**GEMMA3, "logit_softcap": 3.0},
        "windows in all layers": {**GEMMA3, "window_pattern": None},
    },
    "smollm3": {
        **ANY_FAMILY,
        **WINDOWS,
        "no positions in every fourth layer": {"rope_pattern": "RRRN"},
        "no positions in the first layers": {"rope_pattern": "NNRR", "tie_embeddings": True},
        "no positions at all": {"rope_pattern": "N"},
        "layers without positions, YaRN": {"rope_pattern": "RN", **YARN},
        "layers without positions have the window": {
            "rope_pattern": "RNRN",
            "window_pattern": "GL",
            "sliding_window": 9,
        },
    },
    "lfm3": {
        **ANY_FAMILY,
        "gated heads": {"head_gates": True},
        "gated heads, tied, one key": {"head_gates": True, "num_kv_heads": 1, **TIED},
        "gated heads and windows": {"head_gates": True, **GEMMA3},
        "windows in all layers": {**GEMMA3, "window_pattern": None},
    },
}
"""Changes of SHAPE by family and case."""


def case_of(family: str, case: str) -> ModelConfig:
    """Returns the config of a case."""
    shape = SHAPE | {"architecture": family, **FAMILIES[family].fixed}
    return tiny(**shape | CASES[family][case])


PATHS: dict[str, Changes] = {
    "llama": {"sliding_window": None, **LLAMA3},
    "mistral": {"sliding_window": 24},
    "qwen2": {"sliding_window": 24, "window_pattern": "LG"},
    "qwen3": {"sliding_window": 24, "window_pattern": "LG"},
    "olmo2": {"sliding_window": None, "rope_theta": 5e5},
    "olmo3": {"sliding_window": 24, "window_pattern": "LG", **YARN, "local_rope_theta": 100.0},
    "gemma3_text": {
        "sliding_window": 24,
        "window_pattern": "LG",
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "query_pre_attn_scalar": 32.0,
        "tie_embeddings": True,
    },
    "smollm3": {"sliding_window": None, "rope_pattern": "RN", **YARN},
    "lfm3": {
        "sliding_window": 24,
        "window_pattern": "LG",
        "local_rope_theta": 1e4,
        "head_gates": True,
    },
}
"""The features of each family's model in `tests.family_path`, from training to a chat model."""
