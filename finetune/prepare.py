"""Loads the base model and builds `trl`'s trainer for supervised tuning, with verified labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from conf.errors import InputError, first_line
from finetune.arguments import add_callbacks, common_arguments, make_dataset
from finetune.config import SftConfig
from finetune.rows import Row
from finetune.template import with_end
from finetune.tokens import IGNORED, add_template_tokens, tokenize
from finetune.trainer import AnswerTrainer


@dataclass(frozen=True)
class Base:
    """The model to tune with fp32 weights, the type in which it is stored, and its tokenizer."""

    model: PreTrainedModel
    stored_dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase


def load(model_dir: Path) -> Base:
    """Loads the model and tokenizer of a Hugging Face folder.

    Raises:
        InputError: the folder cannot be loaded, or its model and tokenizer do not match.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        stored = AutoConfig.from_pretrained(model_dir, local_files_only=True).dtype
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"model={model_dir}: the model cannot be loaded ({first_line(error)}). Export or "
            "download it again."
        ) from None
    model, loading = loaded
    if loading["missing_keys"]:
        raise InputError(
            f"model={model_dir}: weights that its config.json requires are missing, such as "
            f"{min(loading['missing_keys'])}. Export or download the model again."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"model={model_dir}: the tokenizer has {len(tokenizer)} ids, more than "
            f"vocab_size={model.config.vocab_size} in config.json. Use the tokenizer that the "
            "model was trained with."
        )
    if tokenizer.eos_token is None:
        raise InputError(
            f"model={model_dir}: the tokenizer has no eos_token, which ends an answer. Set "
            "eos_token in its tokenizer_config.json."
        )
    return Base(model, stored or torch.float32, tokenizer)


def build_trainer(
    config: SftConfig,
    base: Base,
    rows: list[Row],
    processes: int,
    folder: Path,
    validation: list[Row] | None = None,
) -> AnswerTrainer:
    """Returns a trainer whose dataset is tokenized, masked, and packed if `packing` is set.

    Longer conversations are truncated to max_seq_len, and those whose first answer begins beyond
    it are dropped.

    Raises:
        InputError: max_seq_len exceeds the model's maximum, or no answer begins within it.
    """
    settings = common_arguments(config, base.model, processes, folder)
    max_seq_len = settings["max_length"]
    arguments = TrlConfig(
        **settings,
        packing=config.packing,
        eval_packing=False,
        shuffle_dataset=config.packing,
    )
    template = with_end(config.template, base.tokenizer)
    missing = add_template_tokens(base.tokenizer, template)
    if missing and len(base.tokenizer) > base.model.config.vocab_size:
        torch.manual_seed(config.seed)
        base.model.resize_token_embeddings(len(base.tokenizer))

    def tokenized(rows: list[Row]) -> datasets.Dataset:
        found = tokenize(rows, template, base.tokenizer)
        within = [row for row in found if set(row["labels"][:max_seq_len]) != {IGNORED}]
        return make_dataset(within, max_seq_len)

    data = tokenized(rows)
    trainer = AnswerTrainer(
        config,
        model=base.model,
        args=arguments,
        train_dataset=data,
        eval_dataset=tokenized(validation) if validation else None,
        processing_class=base.tokenizer,
    )
    trainer.num_skipped = len(rows) - len(data)
    add_callbacks(trainer, processes)
    return trainer


def check_labels(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks the labels of the first batch and of every sequence, each part of a packed one.

    Raises:
        InputError: all tokens of a sequence, or no token of the first batch, would be trained on.
    """
    data, arguments = trainer.train_dataset, trainer.args
    assert isinstance(data, datasets.Dataset)
    assert isinstance(arguments, TrlConfig)
    for sequence in data.with_format("numpy"):
        lengths = sequence.get("seq_lengths", [len(sequence["labels"])])
        ends = np.cumsum(lengths)[:-1]
        for ids, labels in zip(
            np.split(sequence["input_ids"], ends), np.split(sequence["labels"], ends), strict=True
        ):
            if not (labels == IGNORED).any():
                raise InputError(
                    "chat_template: every token of the example "
                    f"{tokenizer.decode(ids)!r:.80} would be trained on, including its prompt. "
                    "Mark only the assistant's turns in the training_template."
                )
    first = data.select(range(min(arguments.train_batch_size, len(data))))
    labels = trainer.data_collator(list(first))["labels"]
    share = (labels != IGNORED).float().mean().item()
    if not 0 < share < 1:
        raise InputError(
            f"chat_template: {share:.0%} of the tokens of the first batch would be trained on. "
            "Mark all of the assistant's turns, and nothing else, in the training_template."
        )
