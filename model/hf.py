"""To and from Hugging Face folders that stock `transformers` loads.

Names inside the decoder are those of the checkpoints, less the prefix `model.`; only safetensors
are read and written (I11).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import InputError
from model.config import ModelConfig

FILE_BYTES = 2 * 10**9
"""Of weights; what writing them takes of memory."""
REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "rms_norm_eps"),
)
CLASSES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}


def hf_config(
    config: ModelConfig, special_ids: Mapping[str, int | None], dtype: str
) -> dict[str, Any]:
    """The `config.json` of a model; special_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`."""
    fields: dict[str, Any] = {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
        **special_ids,
    }
    if config.architecture == "mistral":
        fields["sliding_window"] = config.sliding_window
    else:
        fields |= {"attention_bias": False, "mlp_bias": False}
    return fields


def read_config(folder: Path) -> ModelConfig:
    """The shape of a Mistral or Llama model from its folder.

    Raises InputError where the folder holds another architecture or a feature that the decoder
    does not have (biases, scaled RoPE).
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a Hugging Face model folder.")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Copy the folder again.") from None
    architecture = fields.get("model_type")
    if architecture not in CLASSES:
        raise InputError(
            f"{path}: model_type is '{architecture}', expected one of {', '.join(CLASSES)}."
        )
    rope = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", rope.get("rope_type", "default")))
    for feature, found in (
        ("RoPE of type", None if kind == "default" else kind),
        ("attention_bias", fields.get("attention_bias")),
        ("mlp_bias", fields.get("mlp_bias")),
        (
            "hidden_act",
            None if fields.get("hidden_act", "silu") == "silu" else fields["hidden_act"],
        ),
    ):
        if found:
            raise InputError(f"{path}: {feature} {found} is not supported by this decoder.")
    for name in REQUIRED:
        if name not in fields:
            raise InputError(f"{path} does not state {name}: expected the config of a whole model.")
    return ModelConfig(
        name=folder.name,
        architecture=architecture,
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
        head_dim=fields.get("head_dim"),
        max_seq_len=fields["max_position_embeddings"],
        # transformers' Mistral defaults to 4096 where the field is absent
        sliding_window=fields.get("sliding_window", 4096) if architecture == "mistral" else None,
        rope_theta=float(fields.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        rms_norm_eps=fields["rms_norm_eps"],
        tie_embeddings=fields.get("tie_word_embeddings", False),
        initializer_range=fields.get("initializer_range", 0.02),
    )


def hf_name(name: str) -> str:
    """Name of a decoder's parameter in a Hugging Face checkpoint."""
    return name if name.startswith("lm_head.") else f"model.{name}"


class HFWeights:
    """The tensors of a Hugging Face folder by the decoder's names, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._files = dict(json.loads(index.read_text())["weight_map"])
        elif (folder / "model.safetensors").is_file():
            with safe_open(folder / "model.safetensors", "pt") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise InputError(
                f"{folder} has no model.safetensors (nor its index): expected safetensors weights."
            )

    def read(self, name: str) -> Tensor:
        """The whole tensor of the decoder's parameter `name`, in the file's dtype."""
        stored = hf_name(name)
        if stored not in self._files:
            raise InputError(f"{self.folder} has no tensor {stored}: is it another architecture?")
        with safe_open(self.folder / self._files[stored], "pt") as file:
            return file.get_tensor(stored)


def save_weights(
    folder: Path,
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes the decoder's parameters as safetensors, with an index where one file of `file_bytes`
    does not hold them. No more than one file's tensors are in memory at a time."""
    parts: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        parts.append(list(held))
        save_file(held, folder / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        value = tensor.detach().to(dtype).contiguous()
        del tensor
        if held and size + value.nbytes > file_bytes:
            write()
            size = 0
        held[hf_name(name)] = value
        size, total = size + value.nbytes, total + value.nbytes
    write()
    where: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        if len(parts) == 1:
            file = "model.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file)
        (folder / file).chmod(0o644)  # safetensors writes them for the owner alone
        where |= dict.fromkeys(names, file)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
