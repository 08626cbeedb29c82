"""Arguments of `trl`'s trainers that supervised and preference tuning share."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PrinterCallback, Trainer

from conf.errors import InputError
from finetune.batch_order import BatchOrder
from finetune.callbacks import LogLastStep, MarkSaved
from finetune.config import SCHEDULES, SftConfig
from finetune.precision import agree_on_precision, uses_cpu


def make_dataset(examples: list[dict[str, list[int]]], max_seq_len: int) -> datasets.Dataset:
    """Returns the examples as a dataset; raises InputError if there are none.

    The caller has dropped the examples whose answer begins beyond max_seq_len.
    """
    if not examples:
        raise InputError(
            f"max_seq_len={max_seq_len}: no answer begins within the first {max_seq_len} tokens. "
            "Raise max_seq_len, or give shorter conversations."
        )
    return datasets.Dataset.from_list(examples)


def common_arguments(
    config: SftConfig, model: PreTrainedModel, processes: int, folder: Path
) -> dict[str, Any]:
    """Returns the arguments that `trl`'s SFTConfig and DPOConfig share.

    Raises:
        InputError: max_seq_len exceeds the model's maximum, batch_size cannot be divided evenly
            among processes and micro-batches, or device=cuda is not available.
    """
    longest = model.config.max_position_embeddings
    max_seq_len = config.max_seq_len or longest
    if max_seq_len > longest:
        raise InputError(
            f"max_seq_len={max_seq_len}: expected at most {longest}, the model's "
            "max_position_embeddings."
        )
    micro_batch_size, accumulation_steps = config.split_batch(processes)
    datasets.disable_progress_bars()
    # transformers warns of a default of trl and of a call in peft.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing.*` is", FutureWarning)
    validates = config.validation is not None
    writes = os.environ.get("RANK", "0") == "0"
    precision = agree_on_precision(config, folder, processes, writes)
    return {
        "output_dir": str(folder),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.schedule],
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip_norm,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": micro_batch_size,
        "per_device_eval_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "max_length": max_seq_len,
        "include_num_input_tokens_seen": "non_padding",
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": precision == "bf16",
        "use_cpu": uses_cpu(config),
        "seed": config.seed,
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "eval_strategy": "steps" if validates else "no",
        "eval_steps": config.validate_every,
        "eval_on_start": validates,
        "prediction_loss_only": True,
        "save_strategy": "steps" if config.checkpoint_every else "no",
        "save_steps": config.checkpoint_every or 1,
        "save_total_limit": 2,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "use_cache": model.config.use_cache,  # else the saved config.json would have false
        "disable_tqdm": True,
        "dataloader_pin_memory": not uses_cpu(config),
    }


def batch_order(trainer: Trainer, config: SftConfig, lengths: list[int]) -> BatchOrder:
    """Returns the sampler that orders the trainer's rows, which have the given lengths."""
    return BatchOrder(
        lengths,
        config.batch_size,
        config.seed,
        lambda: int(trainer.state.epoch or 0),
        by_length=not config.packing,
    )


def add_callbacks(trainer: Trainer, processes: int) -> None:
    """Replaces `trl`'s printer, and adds the callbacks that every process needs."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLastStep())
    trainer.add_callback(MarkSaved(int(os.environ.get("RANK", "0")), processes))
