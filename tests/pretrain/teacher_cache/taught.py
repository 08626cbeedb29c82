"""A small teacher, and the settings that cache its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from conf.entry import compose_settings
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from model.families import family_named
from model.families.folder import hf_config, save_weights
from model.init import initial_value
from model.network import build_meta
from pretrain.__main__ import COMMANDS
from pretrain.teacher_cache.config import TeachConfig
from tests.model.shapes import tiny
from tests.runs import SETTINGS

TEACHER = tiny(vocab_size=260, hidden_size=48, num_layers=2, max_seq_len=256, sliding_window=24)
SHORT: dict[str, Any] = {
    "recipe__stages__short__tokens": 4096,
    "recipe__stages__long__tokens": 4096,
}
"""Four steps, two of them with sequences of 64 tokens."""
SHARPNESS = 2.0
"""Factor on the initial weights, so that some tokens are far more probable than others."""


def make_teacher(folder: Path, corpus: Manifest, model: ModelConfig = TEACHER) -> Path:
    """Makes a Hugging Face folder with random weights and the tokenizer of a corpus."""
    folder.mkdir(parents=True)
    shapes = build_meta(model).named_parameters()
    weights = ((n, SHARPNESS * initial_value(n, p.shape, model, 7)) for n, p in shapes)
    save_weights(folder, weights, torch.float32, family_named(model.architecture))
    (folder / "config.json").write_text(json.dumps(hf_config(model, {}, "float32")))
    shutil.copy(corpus.tokenizer_path, folder / "tokenizer.json")
    return folder


def arguments(teacher: Path | None, corpus: Path | None, out: Path, **changes: Any) -> list[str]:
    """Returns the keys of `pretrain teach` for the run of `tests.runs`; `__` stands for a dot."""
    keys = {k: v for k, v in SETTINGS.items() if k.startswith("recipe")}
    keys |= {"model": teacher, "data": corpus, "out": out, "device": "cpu", "precision": "fp32"}
    keys |= {"top_k": 8, "micro_batch_tokens": 512, "unit_tokens": 8192}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={'null' if value is None else value}" for key, value in keys.items()]


def teach_config(
    teacher: Path | None, corpus: Path | None, out: Path, **changes: Any
) -> TeachConfig:
    """Returns the config that the same keys compose, to teach in this process."""
    config = compose_settings(COMMANDS["teach"], arguments(teacher, corpus, out, **changes))
    assert isinstance(config, TeachConfig)
    return config


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files in a folder by relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
