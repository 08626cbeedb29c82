"""Reads a GGUF file back into the form of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from model.config import ModelConfig
from model.families import family_named
from model.families.folder import hf_config
from model.families.hf_forms import tokenizer_settings
from model.families.model_files import ModelFiles
from model.gguf.read_shape import read_shape
from model.gguf.read_tokenizer import read_tokenizer
from model.gguf.tensors import FACTORS, HEAD, TABLE, entries, restored

ENDS = ("bos", "eos", "pad")
DTYPE = "float32"
TEMPLATE = "tokenizer.chat_template"


def read_gguf(path: Path, own_tokenizer: bool) -> tuple[ModelFiles, Iterator[tuple[str, Tensor]]]:
    """Returns the files of a model, and its weights in float32 by their names in Hugging Face.

    Quantized weights are dequantized. Every key and every tensor of the file is read, or refused by
    its name. Without `own_tokenizer`, the tokenizer is not read.

    Raises:
        InputError: The file is damaged, or has a model or tokenizer that no family has.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            f"path={path}: reading GGUF needs the package gguf, which is not installed. Install it "
            'with pip install -c constraints.txt -e ".[gguf]".'
        ) from None
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(
            f"path={path}: the file cannot be read ({error}). Copy it again."
        ) from None
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        return _read(values, tensors, own_tokenizer)
    except InputError as error:
        raise InputError(f"path={path}: {error}") from None


def _read(
    values: dict[str, Any], tensors: dict[str, Any], own_tokenizer: bool
) -> tuple[ModelFiles, Iterator[tuple[str, Tensor]]]:
    """Returns what `read_gguf` returns, from the metadata and the tensors by name."""
    if TABLE not in tensors:
        raise InputError(f"{TABLE} is missing. Give the complete file of a language model.")
    table, head = tensors[TABLE], tensors.get(HEAD)
    head_is_table = head is None or np.array_equal(head.data, table.data)
    factors = dequantized(tensors[FACTORS]) if FACTORS in tensors else None
    config, graph = read_shape(values, len(table.data), head_is_table, factors)
    listed = {entry.name: entry for entry in entries(config, graph, "f32")}
    known = {*listed, *([HEAD] if head_is_table else [])}
    if unknown := sorted(set(tensors) - known):
        raise InputError(f"{unknown[0]}: the network has no such tensor. Give the original model.")
    if missing := sorted(set(listed) - set(tensors)):
        raise InputError(f"{missing[0]} is missing. Give the complete file of a language model.")
    for name, entry in listed.items():
        if tuple(reversed(tensors[name].shape.tolist())) != entry.shape:
            raise InputError(
                f"{name} has the shape {tensors[name].shape.tolist()[::-1]} instead of "
                f"{list(entry.shape)}. Give the original model."
            )
    files = _files(config, values) if own_tokenizer else ModelFiles(hf_config(config, {}, DTYPE))
    family = family_named(config.architecture)

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name, entry in listed.items():
            if entry.source and not (entry.source == "lm_head.weight" and config.tie_embeddings):
                value = dequantized(tensors[name])
                yield family.hf_name(entry.source), restored(entry.source, value, config, graph)

    return files, weights()


def _files(config: ModelConfig, values: dict[str, Any]) -> ModelFiles:
    """Returns the files of a model with the tokenizer in the metadata."""
    text, ids = read_tokenizer(values)
    special = {f"{role}_token_id": ids.get(role) for role in ENDS}
    tokens = values["tokenizer.ggml.tokens"]
    spelled = {role: tokens[number] for role, number in ids.items() if role != "eot"}
    ends = [ids[role] for role in ("eos", "eot") if role in ids]
    generation = {**special, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return ModelFiles(
        hf_config(config, special, DTYPE),
        text,
        tokenizer_settings(spelled, config.max_seq_len),
        values.get(TEMPLATE),
        {"_from_model_config": False, **generation},
    )


def dequantized(tensor: Any) -> Tensor:
    """Returns a tensor of a file in float32."""
    from gguf.quants import dequantize

    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
