"""What `trl` is told in supervised and in preference tuning alike."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PrinterCallback, Trainer

from conf.errors import InputError
from finetune.config import SCHEDULES, SftConfig
from finetune.order import Order
from finetune.precision import on_cpu, settle_precision
from finetune.watch import LastStep, Saved


def data_set(found: list[dict[str, list[int]]], max_seq_len: int) -> datasets.Dataset:
    """The examples whose answer begins within max_seq_len; raises InputError where none does."""
    if not found:
        raise InputError(
            f"no answer begins within max_seq_len={max_seq_len} tokens: "
            "give a longer max_seq_len or shorter conversations."
        )
    return datasets.Dataset.from_list(found)


def common(
    config: SftConfig, model: PreTrainedModel, processes: int, folder: Path
) -> dict[str, Any]:
    """Arguments of `trl`'s SFTConfig and DPOConfig.

    Raises:
        InputError: max_seq_len is beyond the model's, or batch_size does not divide.
    """
    longest = model.config.max_position_embeddings
    max_seq_len = config.max_seq_len or longest
    if max_seq_len > longest:
        raise InputError(f"max_seq_len={max_seq_len} is more than the model's {longest}.")
    micro_batch_size, accumulation_steps = config.share(processes)
    datasets.disable_progress_bars()
    # trl's own default, and peft's own call, are what transformers warns of.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing.*` is", FutureWarning)
    validates = config.validation is not None
    writes = os.environ.get("RANK", "0") == "0"
    precision = settle_precision(config, folder, processes, writes)
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
        "use_cpu": on_cpu(config),
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
        "use_cache": model.config.use_cache,  # else the saved config.json would say false
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu(config),
    }


def sampler(trainer: Trainer, config: SftConfig, lengths: list[int]) -> Order:
    """The order of the trainer's rows."""
    return Order(
        lengths,
        config.batch_size,
        config.seed,
        lambda: int(trainer.state.epoch or 0),
        alike=not config.packing,
    )


def add_callbacks(trainer: Trainer, processes: int) -> None:
    """Our own words for `trl`'s, marks of whole checkpoints, and a log at each of them."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LastStep())
    trainer.add_callback(Saved(int(os.environ.get("RANK", "0")), processes))
