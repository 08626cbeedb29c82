"""The run that a ladder forecasts."""

from __future__ import annotations

from dataclasses import dataclass

from launch.studies.base_command import BaseCommand
from launch.studies.ladder.shapes import count
from model.config import ModelConfig
from model.flops import flops_per_token
from pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Target:
    """The run that a ladder forecasts, as its own command states it.

    Attributes:
        settings: Settings of the command.
        size: Number of parameters N, counted as in the study.
        stage: The stage with the most tokens; the ladder trains on this one only.
        tokens: Tokens of all stages.
        corpus_tokens: Training tokens in the corpus, of the sources that the stage reads.
    """

    settings: PretrainConfig
    size: int
    stage: str
    tokens: int
    corpus_tokens: int

    @staticmethod
    def of(base: BaseCommand, counted: str) -> Target:
        """Returns the target of a base command."""
        settings = base.settings()
        stages = settings.recipe.stages
        stage = max(stages, key=lambda name: stages[name].tokens)
        read = stages[stage].mixture or base.source_tokens
        known = [base.source_tokens[source] for source in read if source in base.source_tokens]
        return Target(settings, count(settings.model, counted), stage, base.tokens(), sum(known))

    @property
    def model(self) -> ModelConfig:
        """The model."""
        return self.settings.model

    @property
    def seq_len(self) -> int:
        """Tokens per sequence of the stage."""
        return int(self.settings.recipe.stages[self.stage].seq_len)

    @property
    def flops(self) -> float:
        """Training FLOPs, with one document per sequence."""
        return self.tokens * flops_per_token(self.model, self.seq_len)

    @property
    def stage_overrides(self) -> list[str]:
        """Overrides that leave only the stage, with the batch and the rate of the whole run."""
        stage, key = self.settings.recipe.stages[self.stage], f"recipe.stages.{self.stage}"
        found = [
            f"~recipe.stages.{name}" for name in self.settings.recipe.stages if name != self.stage
        ]
        if stage.global_batch_tokens is not None:
            found.append(f"{key}.global_batch_tokens=null")
        if stage.batch_ramp.start:
            found.append(f"{key}.batch_ramp.start=0")
        if stage.learning_rate.shape is not None:
            found += [f"{key}.learning_rate.{name}=null" for name in ("shape", "start", "end")]
        return found
