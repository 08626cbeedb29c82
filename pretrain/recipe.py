"""Training settings of a recipe's stages: learning rate, precision and RoPE."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import InputError, one_of
from data_pipeline.sampling.recipe import RecipeConfig, ScheduledStage, StageConfig
from model.rope_scaling import RopeScaling


@dataclass
class StageRate:
    """Learning rate of a stage, which replaces that of `optim`.

    The rate changes from `start` to `end` over the tokens of the stage.

    shape: constant, linear, cosine or sqrt (1 - sqrt of the progress); null for the run's rate.
    start: rate at the start; null for the rate at which the previous stage ended.
    end: rate at the end; null for a constant rate.
    """

    shape: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass
class TrainingStageConfig(StageConfig):
    """Configuration of one stage of a recipe: the keys of `StageConfig` and training settings.

    rope_theta: base of the rotary position embedding; null for the model's.
    rope_scaling: scaling of the rotary position embedding; without a type, the model's, and with
        type none, no scaling.
    learning_rate: learning rate of the stage.
    precision: precision of the stage; null for the run's.
    """

    rope_theta: float | None = None
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    learning_rate: StageRate = field(default_factory=StageRate)
    precision: str | None = None


@dataclass
class TrainingRecipeConfig(RecipeConfig):
    """Configuration of a recipe with training settings; see `RecipeConfig` for its keys."""

    # mypy rejects the narrower value type, but no code adds stages after the config is composed.
    stages: dict[str, TrainingStageConfig] = field(  # type: ignore[assignment]
        default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, stage in self.stages.items():
            key = f"recipe.stages.{name}"
            if stage.rope_theta is not None and not stage.rope_theta > 0:
                raise InputError(
                    f"{key}.rope_theta={stage.rope_theta}: expected more than 0, or null for the "
                    "model's RoPE base."
                )
            stage.rope_scaling.check_stage(f"{key}.rope_scaling", stage.seq_len)
            _check_rate(stage.learning_rate, f"{key}.learning_rate")


def training_config(stage: ScheduledStage) -> TrainingStageConfig:
    """Returns the training settings of a stage, which must come from a `TrainingRecipeConfig`."""
    if not isinstance(stage.config, TrainingStageConfig):
        raise TypeError(f"stage '{stage.name}' has no training settings")
    return stage.config


def _check_rate(rate: StageRate, key: str) -> None:
    if rate.shape is None:
        if rate != StageRate():
            raise InputError(
                f"{key}.shape=null: requires start and end to be null too. Set the shape, or "
                "remove start and end."
            )
        return
    one_of(f"{key}.shape", rate.shape, ("constant", "linear", "cosine", "sqrt"))
    if (rate.end is None) != (rate.shape == "constant"):
        end = "null" if rate.end is None else rate.end
        expected = "null" if rate.shape == "constant" else "a rate"
        raise InputError(f"{key}.end={end}: expected {expected} with {key}.shape={rate.shape}.")
    for name in ("start", "end"):
        if (value := getattr(rate, name)) is not None and value < 0:
            raise InputError(f"{key}.{name}={value}: expected 0 or more.")
