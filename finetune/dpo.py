"""`python -m finetune dpo`: direct preference optimization of a Hugging Face folder.

The method is that of Rafailov et al. 2023 (arXiv 2305.18290), with LoRA, `trl` and `peft`. The
base with its adapters disabled is the reference model. At the end the adapters are merged, so that
the result is again a folder that stock `transformers` loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.config import DpoConfig
from finetune.rows import read_pairs
from finetune.run import Method, run

if TYPE_CHECKING:
    from transformers import Trainer

    from finetune.prepare import Base
    from finetune.prepare_dpo import PairTrainer


def dpo(config: DpoConfig) -> None:
    """Tunes the model on preference pairs and writes the folder `out`.

    Raises:
        InputError: the settings, model folder, data or template are invalid; `out` is unchanged.
    """
    run(config, Method("pairs", read_pairs, _build, merge, ("beta", "lora_rank", "lora_alpha")))


def merge(trainer: Trainer, base: Base) -> None:
    """Merges the adapters into the weights of `base.model`, in fp32, and removes them."""
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    merged = adapted.merge_and_unload()
    assert merged is base.model


def _build(*parts: Any) -> PairTrainer:
    from finetune.prepare_dpo import build_trainer

    return build_trainer(*parts)
