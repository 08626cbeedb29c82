"""Reads a checkpoint of litgpt: `lit_model.pth` and `model_config.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from conf.errors import InputError
from model.config import ModelConfig
from model.rope_scaling import RopeScaling
from model.tensors_only import load_tensors

CONFIG, WEIGHTS = "model_config.yaml", "lit_model.pth"
DEFAULTS: dict[str, Any] = {
    "bias": True,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
    "parallel_residual": True,
    "rotary_percentage": 0.25,
}
"""Values of litgpt's own for keys that a file lacks, where they differ from those of EXPECTED."""
EXPECTED: dict[str, Any] = {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "bias": False,
    "lm_head_bias": False,
    "parallel_residual": False,
    "shared_attention_norm": False,
    "norm_1": True,
    "norm_2": True,
    "norm_qk_type": "default",
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rotary_percentage": 1.0,
    "rope_condense_ratio": 1,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "rope_indices": None,
    "scale_embeddings": False,
    "n_expert": 0,
    "latent_attention": None,
}
"""The only values of keys that change the computation and are not among those that are read."""
NAMES = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
"""Names of a layer's modules: litgpt's, and the decoder's."""
OUTER = {
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.ln_f.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def read_shape(folder: Path) -> ModelConfig:
    """Returns the shape of the model.

    Raises InputError with the name of a key whose value the network does not have.
    """
    path = folder / CONFIG
    stated = yaml.safe_load(path.read_text())
    found = {**EXPECTED, **DEFAULTS, **stated}
    for key, expected in EXPECTED.items():
        if found[key] != expected:
            raise InputError(
                f"{path}: {key}={found[key]} is not supported; expected {expected}. Give a model "
                "without this feature."
            )
    windowed = stated.get("sliding_window_size") is not None
    indices = (stated.get("sliding_window_indices") or [])[: stated["n_layer"]]
    if windowed and indices and not all(indices):
        raise InputError(
            f"{path}: sliding_window_indices={indices}: layers without the window are not "
            "supported. Give a model whose window is that of all layers."
        )
    bias, qk_norm = bool(stated.get("attn_bias")), bool(stated.get("norm_qk"))
    if sum((windowed, bias, qk_norm)) > 1:
        raise InputError(
            f"{path}: attn_bias={bias}, norm_qk={qk_norm}, sliding_window_size="
            f"{stated.get('sliding_window_size')}: no class of docs/families.md has these "
            "together. Give a model with one of them."
        )
    architecture = next(
        (name for name, has in (("mistral", windowed), ("qwen2", bias), ("qwen3", qk_norm)) if has),
        "llama",
    )
    return ModelConfig(
        name=folder.name,
        architecture=architecture,
        vocab_size=stated.get("padded_vocab_size") or stated["vocab_size"],
        hidden_size=stated["n_embd"],
        intermediate_size=stated["intermediate_size"],
        num_layers=stated["n_layer"],
        num_heads=stated["n_head"],
        num_kv_heads=stated.get("n_query_groups") or stated["n_head"],
        head_dim=stated.get("head_size"),
        max_seq_len=stated["block_size"],
        sliding_window=stated.get("sliding_window_size"),
        qk_norm=qk_norm,
        qkv_bias=bias,
        rope_theta=float(stated.get("rope_base", 10_000)),
        rope_scaling=_scaling(path, stated),
        rms_norm_eps=float(stated.get("norm_eps", 1e-5)),
    )


def _scaling(path: Path, stated: Mapping[str, Any]) -> RopeScaling:
    """Returns the scaling of the rotary positions."""
    adjusted = stated.get("rope_adjustments")
    if not adjusted:
        return RopeScaling()
    keys = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
    if set(adjusted) != keys:
        raise InputError(
            f"{path}: rope_adjustments={adjusted}: expected the keys {', '.join(sorted(keys))}. "
            "Give a model with this scaling, or without one."
        )
    return RopeScaling(
        type="llama3",
        factor=float(adjusted["factor"]),
        low_freq_factor=float(adjusted["low_freq_factor"]),
        high_freq_factor=float(adjusted["high_freq_factor"]),
        original_max_seq_len=int(adjusted["original_max_seq_len"]),
    )


def read_weights(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields the decoder's parameters by name.

    Raises InputError if the file has other weights than the config describes.
    """
    path = folder / WEIGHTS
    try:
        loaded = load_tensors(path)
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}). Copy the folder again.") from None
    stored: dict[str, Tensor] = dict(loaded.get("model", loaded))
    stored = {name.removeprefix("_orig_mod."): value for name, value in stored.items()}
    assert config.head_dim is not None
    rows = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
    sizes = [count * config.head_dim for count in rows]

    def take(name: str) -> Tensor:
        if name not in stored:
            raise InputError(
                f"{path} has no tensor {name}, which {CONFIG} asks for. Copy the folder again."
            )
        return stored.pop(name)

    for theirs, ours in OUTER.items():
        yield ours, take(theirs)
    for layer in range(config.num_layers):
        of, to = f"transformer.h.{layer}", f"layers.{layer}"
        for theirs, ours in NAMES.items():
            if config.qk_norm or not theirs.startswith("attn.norm"):
                yield f"{to}.{ours}.weight", take(f"{of}.{theirs}.weight")
        for kind in ("weight", "bias")[: 1 + config.qkv_bias]:
            parts = take(f"{of}.attn.qkv.{kind}").split(sizes)
            for name, part in zip("qkv", parts, strict=True):
                yield f"{to}.self_attn.{name}_proj.{kind}", part
    if stored:
        raise InputError(
            f"{path}: the tensor {min(stored)} is not part of the model that {CONFIG} describes. "
            "Copy the folder again."
        )
