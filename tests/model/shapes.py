"""A decoder small enough for every test."""

from typing import Any

import torch
from torch import nn

from model.config import ModelConfig
from model.init import initial_value


def tiny(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "name": "tiny",
        "vocab_size": 259,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_seq_len": 128,
        "sliding_window": 17,
        "initializer_range": 0.1,
    }
    return ModelConfig(**(shape | changes))


@torch.no_grad()
def initialize(module: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fills an unsplit decoder in place."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(name, parameter.shape, config, seed))
