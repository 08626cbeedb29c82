"""From checked settings to a DPO trainer of `trl` on our token ids."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from conf.chat import ChatTemplate
from conf.errors import InputError
from finetune.config import SCHEDULES, DpoConfig
from finetune.prepare import Base, on_cpu, precision_of
from finetune.rows import Row
from finetune.tokens import IGNORED, tokenize
from finetune.watch import LastStep


class PairTrainer(DPOTrainer):
    """`trl`'s trainer on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


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


def build_trainer(
    config: DpoConfig, base: Base, rows: list[Row], processes: int, folder: Path
) -> DPOTrainer:
    """A trainer of adapters on `base.model`, whose pairs are tokenized and whose prompts are
    masked; pairs whose prompt fills max_seq_len are dropped, longer answers are cut.

    Raises:
        InputError: max_seq_len is beyond the model's, or no answer begins within it.
    """
    longest = base.model.config.max_position_embeddings
    max_seq_len = config.max_seq_len or longest
    if max_seq_len > longest:
        raise InputError(f"max_seq_len={max_seq_len} is more than the model's {longest}.")
    micro_batch_size, accumulation_steps = config.share(processes)
    datasets.disable_progress_bars()
    # trl's own default, and peft's own call, are what transformers warns of.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is", FutureWarning)
    base.tokenizer.chat_template = config.chat_template.template
    pairs = tokenize_pairs(rows, config.chat_template, base.tokenizer)
    pairs = [pair for pair in pairs if len(pair["prompt_ids"]) < max_seq_len]
    if not pairs:
        raise InputError(
            f"no answer begins within max_seq_len={max_seq_len} tokens: "
            "give a longer max_seq_len or shorter conversations."
        )
    arguments = TrlConfig(
        output_dir=str(folder),
        beta=config.beta,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation_steps,
        max_length=max_seq_len,
        include_num_input_tokens_seen="non_padding",
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=precision_of(config) == "bf16",
        use_cpu=on_cpu(config),
        seed=config.seed,
        logging_steps=config.log_every,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cache=base.model.config.use_cache,  # else the saved config.json would say false
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu(config),
    )
    trainer = PairTrainer(
        model=base.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=base.tokenizer,
        peft_config=LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LastStep())
    return trainer
