"""The shape that all sides train, but for nanoGPT's own architecture."""

from __future__ import annotations

import yaml

from conf.overrides import CONF_DIR
from model.config import ModelConfig


def shape() -> ModelConfig:
    """Returns the shape of `demo_12m`."""
    return ModelConfig(**yaml.safe_load((CONF_DIR / "model/demo_12m.yaml").read_text()))
