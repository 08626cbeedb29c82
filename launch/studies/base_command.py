"""The command of `python -m pretrain` that all runs of a study share."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from conf.entry import compose_settings
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from launch.plan.cluster import ClusterConfig
from model.config import ModelConfig
from model.flops import flops_per_token, parameters
from pretrain.__main__ import COMMANDS
from pretrain.config import PretrainConfig
from pretrain.preflight import train_tokens


class BaseCommand:
    """The overrides that all runs of a study share, and what follows from them.

    Methods with `overrides` take further overrides, which replace those of the base command with
    the same key.
    """

    def __init__(self, overrides: Iterable[str], out: Path, cluster: ClusterConfig) -> None:
        self.overrides = tuple(overrides)
        self.out = out
        self.cluster = cluster
        self.composed: dict[tuple[str, ...], PretrainConfig] = {}

    def run_dir(self, name: str) -> Path:
        """Returns the folder of a run of the study."""
        return self.out / "runs" / name

    def settings(self, overrides: Iterable[str] = ()) -> PretrainConfig:
        """Returns the settings of the base command with further overrides; do not change them.

        Raises:
            InputError: `python -m pretrain` would refuse the overrides.
        """
        arguments = merged(self.overrides, overrides)
        if arguments not in self.composed:
            self.composed[arguments] = compose_settings(COMMANDS["train"], list(arguments))
        return self.composed[arguments]

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of the corpus."""
        return open_corpus(self.settings().data.folder)

    @cached_property
    def source_tokens(self) -> dict[str, int]:
        """Training tokens per source in the newest edition of the corpus."""
        return self.manifest.source_tokens("train")

    def model(self, overrides: Iterable[str] = ()) -> ModelConfig:
        """Returns the model."""
        return self.settings(overrides).model

    def parameters(self, overrides: Iterable[str] = ()) -> int:
        """Returns the number of trainable parameters; a tied head is counted once."""
        return parameters(self.model(overrides))

    def non_embedding(self, overrides: Iterable[str] = ()) -> int:
        """Returns the number of parameters without the input embedding and without the head."""
        return non_embedding(self.model(overrides))

    def plan(self, overrides: Iterable[str] = ()) -> StagePlan:
        """Returns the stages of the recipe in steps and tokens."""
        return StagePlan(
            self.settings(overrides).recipe,
            train_tokens(self.settings(overrides).recipe, self.manifest),
        )

    def tokens(self, overrides: Iterable[str] = ()) -> int:
        """Returns the tokens that the recipe trains on, in whole steps."""
        return self.plan(overrides).total_tokens

    def flops(self, overrides: Iterable[str] = ()) -> float:
        """Returns the planned training FLOPs of a whole run, with one document per sequence."""
        model = self.model(overrides)
        return sum(
            stage.tokens * flops_per_token(model, stage.seq_len)
            for stage in self.plan(overrides).stages
        )


def merged(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    """Returns overrides in which the second ones replace those of the first with the same key."""
    found: dict[str, str] = {}
    for override in (*first, *second):
        key = override.lstrip("+~").partition("=")[0]
        found.pop(key, None)  # the later value also takes the later place
        found[key] = override
    return tuple(found.values())


def non_embedding(model: ModelConfig) -> int:
    """Returns the number of parameters without the input embedding and without the head."""
    embeddings = 1 if model.tie_embeddings else 2
    return parameters(model) - embeddings * model.vocab_size * model.hidden_size
