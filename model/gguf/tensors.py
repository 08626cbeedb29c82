"""The weights of a model as tensors of a GGUF file, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from model.config import ModelConfig
from model.families.folder import HFWeights
from model.families.gguf import Graph
from model.gguf.metadata import query_factor
from model.network import build_meta
from model.norms import NORM_PLACES
from model.rope import scaled_frequencies
from model.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""Values of `type` that need no other program."""
TABLES = ("token_embd", "output")
"""Tensors with one row per token, which q4_0 stores in q8_0 (llama.cpp takes q6_k)."""
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names in a GGUF file, by those of the network; norms of a block are named by their place."""
TABLE, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
PLACES = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name, the network's name of its source, shape and type."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType


def gguf_name(name: str, config: ModelConfig) -> str:
    """Returns the name in a GGUF file of a decoder's parameter."""
    path, _, ending = name.rpartition(".")
    norms = dict(zip(NORM_PLACES[config.norm_order], PLACES, strict=True))
    if not path.startswith("layers."):
        return f"{NAMES[path]}.{ending}"
    _, number, part = path.split(".", 2)
    return f"blk.{number}.{NAMES.get(part) or norms[part]}.{ending}"


def tensor_type(name: str, shape: tuple[int, ...], type: str) -> GGMLQuantizationType:
    """Returns the type of a tensor: vectors have f32, and rows that are not blocks f16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if type == "q4_0" and name.partition(".")[0] in TABLES:
        type = "q8_0"
    chosen = GGMLQuantizationType[type.upper()]
    block = GGML_QUANT_SIZES[chosen][0]
    return chosen if shape[-1] % block == 0 else GGMLQuantizationType.F16


def entries(config: ModelConfig, graph: Graph, type: str) -> list[Entry]:
    """Returns the tensors of a file in which matrices have a type of TYPES, in their order."""
    from gguf import GGMLQuantizationType

    parameters = {name: tuple(value.shape) for name, value in build_meta(config).named_parameters()}
    if config.tie_embeddings and not graph.shares_head:
        parameters["lm_head.weight"] = parameters["embed_tokens.weight"]
    found = []
    for source, shape in parameters.items():
        name = gguf_name(source, config)
        found.append(Entry(name, source, shape, tensor_type(name, shape, type)))
    if config.rope_scaling.type == "llama3":
        assert config.head_dim is not None
        shape = (config.head_dim // 2,)
        found.append(Entry(FACTORS, "", shape, GGMLQuantizationType.F32))
    return found


def add_tensor_infos(writer: GGUFWriter, tensors: list[Entry]) -> None:
    """Adds the names, shapes and types of tensors to a file, before their data."""
    from gguf.quants import quant_shape_to_byte_shape

    for tensor in tensors:
        shape = quant_shape_to_byte_shape(tensor.shape, tensor.type)
        size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, tensor.type)


def arrays(
    tensors: list[Entry], weights: HFWeights, config: ModelConfig, graph: Graph
) -> Iterator[np.ndarray[Any, Any]]:
    """Yields the data of tensors in the types that the file states.

    Raises InputError if a value is larger than its type holds.
    """
    from gguf.quants import quantize

    for tensor in tensors:
        source = tensor.source
        if not source:
            assert config.head_dim is not None
            value = rope_factors(config.head_dim, config.rope_theta, config.rope_scaling)
        elif source == "lm_head.weight" and config.tie_embeddings:
            value = weights.read("embed_tokens.weight").float()
        else:
            value = converted(source, weights.read(source).float(), config, graph)
        if tuple(value.shape) != tensor.shape:
            raise InputError(
                f"{weights.folder}: the tensor of {source} has the shape {tuple(value.shape)}, but "
                f"config.json states {tensor.shape}. Copy the folder again."
            )
        if tensor.type.name in ("F16", "Q8_0", "Q4_0"):
            _check_range(tensor, value)
        yield quantize(np.ascontiguousarray(value.numpy()), tensor.type)


def _check_range(tensor: Entry, value: Tensor) -> None:
    """Raises InputError if a value, or the scale of a block, is not finite in float16."""
    largest = value.abs().max().item()
    steps = {"F16": 1, "Q8_0": 127, "Q4_0": 8}[tensor.type.name]
    if not largest / steps <= torch.finfo(torch.float16).max:
        raise InputError(
            f"type={tensor.type.name.lower()}: {tensor.name} has values up to {largest:g}, which "
            "float16 cannot hold. Use type=bf16 or type=f32."
        )


def converted(source: str, value: Tensor, config: ModelConfig, graph: Graph) -> Tensor:
    """Returns the weights of a parameter as llama.cpp multiplies with them, in float32."""
    part = source.rpartition(".")[0].rpartition(".")[2]
    is_norm = part.endswith("norm")
    if is_norm and config.zero_centered_norms:
        value = value + 1.0
    if part == "q_norm":
        value = value * query_factor(config)
    if graph.interleaved_rope and part in ("q_proj", "k_proj"):
        heads = config.num_heads if part == "q_proj" else config.num_kv_heads
        return interleave(value, heads)
    return value


def interleave(value: Tensor, heads: int) -> Tensor:
    """Reorders the rows of each head so that the two values of a pair of RoPE are neighbours.

    value: (heads * head_dim, ...). In the half-split layout, they are head_dim / 2 rows apart.
    """
    halves = value.view(heads, 2, -1, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)


def restored(source: str, value: Tensor, config: ModelConfig, graph: Graph) -> Tensor:
    """Returns the weights of a parameter from those of `converted`."""
    part = source.rpartition(".")[0].rpartition(".")[2]
    if part.endswith("norm") and config.zero_centered_norms:
        value = value - 1.0
    if graph.interleaved_rope and part in ("q_proj", "k_proj"):
        heads = config.num_heads if part == "q_proj" else config.num_kv_heads
        pairs = value.view(heads, -1, 2, *value.shape[1:])
        return pairs.transpose(1, 2).reshape(value.shape)
    return value


def rope_factors(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Returns by how much each frequency of RoPE is divided, (head_dim / 2,)."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.int64)
    frequencies = 1.0 / (theta ** (pairs.float() / head_dim))
    return frequencies / scaled_frequencies(frequencies, theta, scaling)
