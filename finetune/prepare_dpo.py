"""Builds `trl`'s trainer for preference tuning, on pairs that are already tokenized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from conf.chat import ChatTemplate
from conf.errors import InputError
from finetune.arguments import add_callbacks, batch_order, common_arguments, make_dataset
from finetune.batch_order import BatchOrder
from finetune.config import DpoConfig
from finetune.prepare import Base
from finetune.rows import Row
from finetune.template import with_end
from finetune.tokens import IGNORED, add_template_tokens, tokenize


class PairTrainer(DPOTrainer):
    """A DPO trainer on tokenized pairs, which it reads in the order of `BatchOrder`.

    num_skipped: number of pairs whose prompt fills max_seq_len.
    """

    num_skipped = 0

    def __init__(self, config: DpoConfig, **parts: Any) -> None:
        super().__init__(**parts)
        self.config = config

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        data: Any = self.train_dataset
        return batch_order(self, self.config, [sum(map(len, pair.values())) for pair in data])


def tokenize_pairs(
    rows: list[Row], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, list[int]]]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids` of each pair.

    The prompt is encoded as a server sends it, and each answer ends with its end token. Only the
    answers are scored.
    """
    pairs = []
    answers: dict[str, list[dict[str, list[int]]]] = {}
    for key in ("chosen", "rejected"):
        part = [{"prompt": row["prompt"], "completion": row[key]} for row in rows]
        answers[key] = list(tokenize(part, template, tokenizer))
    for chosen, rejected in zip(answers["chosen"], answers["rejected"], strict=True):
        pair = {}
        for key, row in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            pair[key] = [label for label in row["labels"] if label != IGNORED]
        begin = next(i for i, label in enumerate(chosen["labels"]) if label != IGNORED)
        pairs.append({"prompt_ids": chosen["input_ids"][:begin], **pair})
    return pairs


def check_template(config: DpoConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError if the model was tuned with another template or lacks tokens of this one.

    Adapters could not learn new tokens.
    """
    template = config.template
    if tokenizer.chat_template not in (None, template.template):
        raise InputError(
            f"chat_template={template.name}: model={config.model} has a different chat template. "
            "Choose the one that the model was tuned with."
        )
    missing = set(template.special_tokens) - set(tokenizer.get_vocab())
    if missing:
        raise InputError(
            f"chat_template={template.name}: the token {min(missing)} is not in the vocabulary of "
            f"model={config.model}. Tune the model with sft first, because the adapters of DPO "
            "cannot learn new tokens."
        )


def build_trainer(
    config: DpoConfig,
    base: Base,
    rows: list[Row],
    processes: int,
    folder: Path,
    validation: list[Row] | None = None,
) -> PairTrainer:
    """Returns a trainer of adapters on `base.model`, with tokenized pairs and masked prompts.

    Pairs whose prompt fills max_seq_len are dropped, and answers that extend beyond it are
    truncated.

    Raises:
        InputError: max_seq_len exceeds the model's maximum, no answer begins within it, or the
            template does not fit the model.
    """
    settings = common_arguments(config, base.model, processes, folder)
    max_seq_len = settings["max_length"]
    check_template(config, base.tokenizer)
    template = with_end(config.template, base.tokenizer)
    add_template_tokens(base.tokenizer, template)

    def tokenized(rows: list[Row]) -> datasets.Dataset:
        pairs = tokenize_pairs(rows, template, base.tokenizer)
        within = [pair for pair in pairs if len(pair["prompt_ids"]) < max_seq_len]
        return make_dataset(within, max_seq_len)

    data = tokenized(rows)
    trainer = PairTrainer(
        config,
        model=base.model,
        args=TrlConfig(beta=config.beta, **settings),
        train_dataset=data,
        eval_dataset=tokenized(validation) if validation else None,
        processing_class=base.tokenizer,
        peft_config=LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.num_skipped = len(rows) - len(data)
    add_callbacks(trainer, processes)
    return trainer
