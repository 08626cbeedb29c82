"""Reads and writes Hugging Face folders that stock `transformers` loads: config and weights.

Weights are read and written only as safetensors, so that loading never unpickles anything.
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
from model.families import FAMILIES
from model.families.family import COMMON_FIELDS, HF_ACTIVATIONS, OPTIONAL_FEATURES, Family
from model.families.fields import Fields

FILE_BYTES = 2 * 10**9
"""Maximum size of a weight file, which is also the memory needed to write it."""
INDEX = "model.safetensors.index.json"
REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "rms_norm_eps"),
)
COMMON_DEFAULTS: Fields = {
    "num_key_value_heads": None,
    "head_dim": None,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
"""Values that `transformers` assumes for fields that a config.json lacks."""

NOT_SUPPORTED: Fields = {
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "use_mrope": False,
    "quantization_config": None,
    "per_layer_config": None,
}
"""Fields of a config.json for features that the network lacks, with their values if not used."""


def hf_config(
    config: ModelConfig, special_ids: Mapping[str, int | None], dtype: str
) -> dict[str, Any]:
    """Returns the `config.json` of a model.

    Args:
        config: The model.
        special_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`.
        dtype: Type of the weights, such as `bfloat16`.
    """
    family = FAMILIES[config.architecture]
    fields = {
        "architectures": [family.hf_class],
        "model_type": config.architecture,
        **{theirs: getattr(config, ours) for ours, theirs in COMMON_FIELDS.items()},
        family.activation_key: HF_ACTIVATIONS[config.activation],
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
        **special_ids,
        **family.rope_to_hf(vars(config)),
        **family.to_hf(vars(config)),
    }
    return {name: value for name, value in fields.items() if name not in family.not_stated}


def read_config(folder: Path) -> ModelConfig:
    """Returns the model config of a Hugging Face folder.

    Raises InputError if the model's family is unknown, or if the model has a feature that the
    network lacks, such as biases in the MLP.
    """
    path = folder / "config.json"
    stored = _read_fields(path)
    if stored.get("vision_config"):
        raise InputError(
            f"{path}: vision_config is not supported. Give a model for text only, without this key."
        )
    architecture = stored.get("model_type")
    if architecture not in FAMILIES:
        raise InputError(
            f"{path}: model_type={architecture}: expected one of {', '.join(FAMILIES)}. Give a "
            "model of one of these families."
        )
    family = FAMILIES[architecture]
    classes = stored.get("architectures")
    if classes and family.hf_class not in classes:
        raise InputError(
            f"{path}: architectures={classes} is not supported. Give a model of the class "
            f"{family.hf_class}."
        )
    stored |= {family.aliases[name]: stored[name] for name in family.aliases if name in stored}
    fields = {**COMMON_DEFAULTS, **family.hf_defaults, **stored}
    activation = HF_ACTIVATIONS[{**OPTIONAL_FEATURES, **family.fixed}["activation"]]
    not_supported = {**NOT_SUPPORTED, family.activation_key: activation, **family.not_supported}
    for feature, plain in not_supported.items():
        found = fields.get(feature) or plain
        if found != plain:
            raise InputError(
                f"{path}: {feature}={found} is not supported. Give a model without this feature."
            )
    for name in REQUIRED:
        if name not in fields:
            raise InputError(
                f"{path}: the key {name} is missing. Give the folder of a complete model."
            )
    fields["num_key_value_heads"] = fields["num_key_value_heads"] or fields["num_attention_heads"]
    try:
        features = family.rope_from_hf(fields) | family.from_hf(fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return ModelConfig(
        name=folder.name,
        architecture=architecture,
        **{ours: fields[theirs] for ours, theirs in COMMON_FIELDS.items()} | features,
    )


def _read_fields(path: Path) -> Fields:
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give a Hugging Face model folder.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Copy the folder again.") from None


class HFWeights:
    """The tensors in a Hugging Face folder, read one at a time.

    Their names are those of the decoder's parameters, or without a family those in the folder.
    """

    def __init__(self, folder: Path, family: Family | None = None) -> None:
        self.folder = folder
        self._family = family
        index = folder / INDEX
        if index.is_file():
            self._files = dict(json.loads(index.read_text())["weight_map"])
        elif (folder / "model.safetensors").is_file():
            with safe_open(folder / "model.safetensors", "pt") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise InputError(
                f"{folder} has neither model.safetensors nor its index. Convert the weights to "
                "safetensors."
            )

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields each tensor under its name in the folder, file by file."""
        for path in sorted(set(self._files.values())):
            with safe_open(self.folder / path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, file.get_tensor(name)

    def read(self, name: str) -> Tensor:
        """Returns the whole tensor `name`, in the dtype of the file."""
        stored = self._family.hf_name(name) if self._family else name
        if stored not in self._files:
            raise InputError(
                f"{self.folder} has no tensor {stored}: its config.json and weights do not match. "
                "Copy the folder again."
            )
        with safe_open(self.folder / self._files[stored], "pt") as file:
            return file.get_tensor(stored)


def save_weights(
    folder: Path,
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    family: Family | None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes parameters as safetensors.

    If they exceed `file_bytes`, several files and an index are written. The tensors of at most one
    file are in memory at a time.

    Args:
        folder: The folder to write to.
        tensors: Names and values of the parameters.
        dtype: Type to store, None for that of each tensor.
        family: Family of a decoder whose names are converted, None for names of a folder.
        file_bytes: Maximum size of a file.
    """
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
        held[family.hf_name(name) if family else name] = value
        size, total = size + value.nbytes, total + value.nbytes
    write()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        if len(parts) == 1:
            file = "model.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file)
        (folder / file).chmod(0o644)  # safetensors creates files that only their owner can read
        weight_map |= dict.fromkeys(names, file)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
