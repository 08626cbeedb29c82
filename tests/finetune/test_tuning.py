"""Danube's recipes compose to the published values."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from conf.overrides import CONF_DIR, compose_command, store_schema
from finetune.config import DpoConfig, SftConfig

LORA: dict[str, Any] = {
    "beta": 0.2,
    "lora_rank": 4,
    "lora_alpha": 16,
    "batch_size": 2,
    "epochs": 1.0,
}
LORA |= {"repetition_penalty": 1.1}
PUBLISHED = {
    "danube_sft": (
        SftConfig,
        {"learning_rate": 1e-5, "schedule": "cosine", "batch_size": 8, "epochs": 1.0}
        | {"packing": True, "max_seq_len": None, "repetition_penalty": 1.1},
    ),
    "danube_dpo1": (DpoConfig, {"learning_rate": 1e-5, "schedule": "cosine"} | LORA),
    "danube_dpo2": (DpoConfig, {"learning_rate": 3e-6, "schedule": "cosine"} | LORA),
}


@pytest.mark.parametrize("name", [path.stem for path in (CONF_DIR / "tuning").glob("*.yaml")])
def test_recipe(name: str) -> None:
    schema, values = PUBLISHED[name]
    command = "dpo" if schema is DpoConfig else "sft"
    store_schema(command, schema)
    given = ["out=o", "data=[a.jsonl,b.parquet]", f"tuning={name}", "seed=3"]
    composed = compose_command(command, given)
    composed.model = "m"  # which Hydra would look for in a group
    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema)
    assert {key: getattr(config, key) for key in values} == values
    assert (config.data, config.seed) == (["a.jsonl", "b.parquet"], 3)
