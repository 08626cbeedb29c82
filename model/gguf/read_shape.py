"""The shape of a model from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from model.config import ModelConfig
from model.families import FAMILIES
from model.families.gguf import Graph
from model.gguf.metadata import write_metadata
from model.gguf.tensors import rope_factors
from model.rope_scaling import UNSCALED, RopeScaling

Values = Mapping[str, Any]
COUNTS = {
    "max_seq_len": "context_length",
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""Keys that a file must have, by the fields of ModelConfig."""
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
LOCAL_THETA = "rope.freq_base_swa"
NO_EFFECT = ("rope.scaling.finetuned",)
"""Keys that no graph computes with."""
NO_ROPE: tuple[dict[str, str], ...] = ({}, {"rope_pattern": "RRRN"})
"""Layers without positions that a graph may have built in."""
SPANS = [2**power for power in range(4, 24)]
"""Values of `original_max_seq_len` that a table of frequencies is compared with."""


def read_shape(
    values: Values, rows: int, head_is_table: bool, factors: Tensor | None
) -> tuple[ModelConfig, Graph]:
    """Returns the shape of a model, and the graph of llama.cpp that computes it.

    Args:
        values: The metadata of the file.
        rows: Number of rows of the embedding.
        head_is_table: Whether the head is the embedding.
        factors: By how much each frequency of RoPE is divided, None if the file has no such tensor.

    Raises:
        InputError: No family has the shape, or a key states what the network lacks.
    """
    arch = values["general.architecture"]
    own = {
        key.removeprefix(f"{arch}."): rounded(value)
        for key, value in values.items()
        if key.startswith(f"{arch}.") and key.removeprefix(f"{arch}.") not in NO_EFFECT
    }
    if own.get("rope.scaling.type") == UNSCALED:
        own = {key: value for key, value in own.items() if not key.startswith("rope.scaling.")}
    config, graph = _candidate(arch, _fields(arch, own, rows, head_is_table, factors))
    _check(arch, own, config, graph)
    return config, graph


def rounded(value: Any) -> Any:
    """Returns a value, a number in float32 as the shortest decimal that is this number."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _fields(
    arch: str, own: Values, rows: int, head_is_table: bool, factors: Tensor | None
) -> dict[str, Any]:
    """Returns the fields of ModelConfig that the metadata states."""
    for key in COUNTS.values():
        if key not in own:
            raise InputError(
                f"{arch}.{key} is missing. Give the complete file of a language model."
            )
    found = {field: own[key] for field, key in COUNTS.items()}
    heads = own["attention.head_count"]
    found |= {
        "vocab_size": rows,
        "num_kv_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length", own["embedding_length"] // heads),
        "rope_theta": own.get("rope.freq_base", 10_000.0),
        "logit_softcap": own.get("final_logit_softcapping"),
        "tie_embeddings": head_is_table,
    }
    if WINDOW in own:
        if PATTERN not in own or LOCAL_THETA not in own:
            raise InputError(
                f"{arch}.{WINDOW}={own[WINDOW]}: {PATTERN} and {LOCAL_THETA} are missing, so the "
                "file does not state which layers have the window. Give the original model."
            )
        found |= {
            "sliding_window": own[WINDOW],
            "window_pattern": _window_pattern(own[PATTERN], own["block_count"]),
            "local_rope_theta": own[LOCAL_THETA],
        }
    found["rope_scaling"] = _scaling(arch, own, found, factors)
    return found


def _window_pattern(stated: int | list[bool], layers: int) -> str:
    """Returns the letter of each layer; a number n states that every n-th has full attention."""
    if isinstance(stated, int):
        stated = [not stated or (i + 1) % stated > 0 for i in range(layers)]
    return "".join("L" if windowed else "G" for windowed in stated)


def _scaling(
    arch: str, own: Values, found: Mapping[str, Any], factors: Tensor | None
) -> RopeScaling:
    """Returns the scaling of rotary positions, `llama3` if a tensor has its factors."""
    if factors is not None:
        return _llama3(found, factors)
    kind = own.get("rope.scaling.type")
    if kind is None:
        return RopeScaling()
    factor = own.get("rope.scaling.factor", 1.0)
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise InputError(f"{arch}.rope.scaling.type={kind} is not supported. Give another model.")
    scaling = RopeScaling("yarn", factor, own.get("rope.scaling.original_context_length"))
    if "rope.scaling.attn_factor" in own:
        plain = 0.1 * math.log(factor) + 1.0
        scaling.attention_factor = rounded(own["rope.scaling.attn_factor"] * plain)
    return scaling


def _llama3(found: Mapping[str, Any], factors: Tensor) -> RopeScaling:
    """Returns the `llama3` scaling that divides the frequencies by these factors."""
    for span in SPANS:
        scaling = RopeScaling("llama3", rounded(factors.max().item()), span)
        made = rope_factors(found["head_dim"], found["rope_theta"], scaling)
        if made.shape == factors.shape and torch.allclose(made, factors, rtol=1e-5):
            return scaling
    raise InputError(
        "rope_freqs.weight: the frequencies are not those of a llama3 scaling with the factors 1 "
        "and 4. Give the original model."
    )


def _candidate(arch: str, fields: Mapping[str, Any]) -> tuple[ModelConfig, Graph]:
    """Returns the config of the family with the fewest features that the graph computes."""
    reasons: list[str] = []
    for name in sorted(FAMILIES, key=lambda name: len(FAMILIES[name].features)):
        for positions in NO_ROPE:
            settings = {**fields, **FAMILIES[name].fixed, **positions}
            try:
                config = ModelConfig(name="imported", architecture=name, **settings)
                graph = FAMILIES[name].gguf(vars(config))
            except InputError as error:
                reasons.append(str(error))
                continue
            if graph.name == arch:
                return config, graph
    known = sorted(_graphs())
    if arch in known:
        raise InputError(f"general.architecture={arch}: {reasons[0]}")
    raise InputError(
        f"general.architecture={arch} is not supported. Give a file with one of "
        f"{', '.join(known)}, or the original model."
    )


def _graphs() -> set[str]:
    """Returns the names of the graphs that compute a family."""
    found = set()
    for name, family in FAMILIES.items():
        for positions in NO_ROPE:
            shape = {"architecture": name, "rope_pattern": positions.get("rope_pattern")}
            with suppress(InputError):
                found.add(family.gguf(shape).name)
    return found


def _check(arch: str, own: Values, config: ModelConfig, graph: Graph) -> None:
    """Raises InputError if the file states anything that the config does not."""
    from gguf import GGUFWriter

    writer = GGUFWriter(None, arch)
    write_metadata(writer, config, graph)
    expected = {
        key.removeprefix(f"{arch}."): value.value for key, value in writer.kv_data[0].items()
    }
    for key, value in own.items():
        if key == PATTERN and isinstance(value, list):
            continue
        same = key in expected and (
            math.isclose(expected[key], value, rel_tol=1e-6)
            if isinstance(value, float)
            else expected[key] == value
        )
        if not same:
            raise InputError(
                f"{arch}.{key}={value} is not supported"
                + (f"; expected {expected[key]}" if key in expected else "")
                + ". Give the original model."
            )
