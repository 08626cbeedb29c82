"""From checked settings to a DPO trainer of `trl` on our token ids."""

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
from finetune.arguments import add_callbacks, common, data_set, sampler
from finetune.config import DpoConfig
from finetune.order import Order
from finetune.prepare import Base
from finetune.rows import Row
from finetune.tokens import IGNORED, add_tokens, tokenize


class PairTrainer(DPOTrainer):
    """`trl`'s trainer on pairs that are token ids already, in our order.

    left_out: pairs whose prompt fills max_seq_len.
    """

    left_out = 0

    def __init__(self, config: DpoConfig, **parts: Any) -> None:
        super().__init__(**parts)
        self.config = config

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        data: Any = self.train_dataset
        return sampler(self, self.config, [sum(map(len, pair.values())) for pair in data])


def tokenize_pairs(
    rows: list[Row], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair: the prompt as a server sends it,
    the answers with their end token. Only the answers are scored."""
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
    """Raises InputError where the model was tuned on another template, or lacks tokens of this
    one, which adapters could not learn."""
    template = config.chat_template
    if tokenizer.chat_template not in (None, template.template):
        raise InputError(
            f"chat_template={template.name} is not that of model={config.model}: "
            "give the one that the model was tuned with."
        )
    missing = set(template.special_tokens) - set(tokenizer.get_vocab())
    if missing:
        raise InputError(
            f"chat_template={template.name} writes {min(missing)}, which model={config.model} "
            "does not know: tune it with sft first, as adapters learn no new tokens."
        )


def build_trainer(
    config: DpoConfig,
    base: Base,
    rows: list[Row],
    processes: int,
    folder: Path,
    validation: list[Row] | None = None,
) -> PairTrainer:
    """A trainer of adapters on `base.model`, whose pairs are tokenized and whose prompts are
    masked; pairs whose prompt fills max_seq_len are dropped, longer answers are cut.

    Raises:
        InputError: max_seq_len is beyond the model's, or no answer begins within it.
    """
    settings = common(config, base.model, processes, folder)
    max_seq_len = settings["max_length"]
    check_template(config, base.tokenizer)
    add_tokens(base.tokenizer, config.chat_template)

    def tokenized(rows: list[Row]) -> datasets.Dataset:
        pairs = tokenize_pairs(rows, config.chat_template, base.tokenizer)
        within = [pair for pair in pairs if len(pair["prompt_ids"]) < max_seq_len]
        return data_set(within, max_seq_len)

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
    trainer.left_out = len(rows) - len(data)
    add_callbacks(trainer, processes)
    return trainer
