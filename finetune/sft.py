"""`python -m finetune sft`: supervised tuning of a Hugging Face folder, with `trl`.

The loss is taken on the assistant's turns only, which the training twin of the chat template
marks. The result is again a folder that stock `transformers` loads, with the published template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.config import SftConfig
from finetune.rows import read_rows
from finetune.run import Method, run

if TYPE_CHECKING:
    from finetune.trainer import AnswerTrainer


def sft(config: SftConfig) -> None:
    """Tunes the model on conversations and writes the folder `out`.

    Raises:
        InputError: the settings, model folder, data or template are invalid; `out` is unchanged.
    """
    run(config, Method("conversations", read_rows, _build))


def _build(config: SftConfig, base: Any, *parts: Any) -> AnswerTrainer:
    from finetune.prepare import build_trainer, check_labels

    trainer = build_trainer(config, base, *parts)
    check_labels(trainer, base.tokenizer)
    return trainer
