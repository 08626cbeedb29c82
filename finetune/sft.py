"""`python -m finetune sft`: supervised tuning of a Hugging Face folder, on `trl`.

The loss is taken on the assistant's turns only, which the training twin of the chat template
marks. The result is again a folder that stock `transformers` loads, with the published template.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError
from finetune.config import SftConfig
from finetune.output import (
    RESULT,
    check_out,
    inputs_fingerprint,
    is_done,
    model_card,
    output_of,
    staged,
)
from finetune.rows import Row, fingerprint, names, read_rows
from finetune.sources import HUB

if TYPE_CHECKING:
    from transformers import Trainer

    from finetune.prepare import Base
    from finetune.prepare_dpo import PairTrainer
    from finetune.trainer import AnswerTrainer

METRICS = "metrics.jsonl"
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate")


def sft(config: SftConfig) -> None:
    """Tunes the model and writes the folder `out`, or says that it is there already.

    Raises:
        InputError: settings, model folder, data or template do not fit; `out` is untouched.
    """
    stay_here(config)
    writes = os.environ.get("RANK", "0") == "0"
    check_out(config, writes=writes)
    model_dir, out = Path(config.model), Path(config.out)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config.share(processes)
    if not config.check and not (model_dir / "config.json").is_file():
        raise InputError(f"model={model_dir} is no Hugging Face folder: it has no config.json.")
    rows = read_rows(config.data, config.format, config.split, config.language)
    held_out = config.validation
    validation = read_rows(held_out, config.format, None, config.language) if held_out else None
    if config.check:
        if writes:
            print(f"{len(rows)} conversations in {', '.join(names(config.data))}")
        return
    inputs = inputs_fingerprint(config, rows)
    if is_done(config, inputs):
        if writes:
            print(f"{out}: done already, from the same inputs")
        return

    from finetune.prepare import build_trainer, check_labels, load

    base = load(model_dir)
    with staged(output_of(config), inputs, writes=writes) as (folder, checkpoint):
        trainer = build_trainer(config, base, rows, processes, folder, validation)
        check_labels(trainer, base.tokenizer)
        tune(trainer, config, folder, checkpoint, writes)
        if writes:
            record = {"inputs": inputs, **about(trainer, config, rows)}
            save(base, config, record, folder / RESULT)
    if writes:
        print(told(out, record))


def told(out: Path, record: dict[str, Any]) -> str:
    """What a command says in the end."""
    left_out = f" ({record['left_out']} longer than max_seq_len)" if record["left_out"] else ""
    return (
        f"{out}: {record['steps']} steps on {record['rows']} {record['kind']}{left_out}, loss "
        f"{record['first_loss']:.3f} -> {record['loss']:.3f}, {record['seconds']:.0f} s"
    )


def stay_here(config: SftConfig) -> None:
    """Looks nothing up on the Hub where all the data lie on this machine; a model always does."""
    if not any(name.startswith(HUB) for name in names(config.data)):
        os.environ["HF_HUB_OFFLINE"] = "1"


def tune(
    trainer: Trainer, config: SftConfig, folder: Path, checkpoint: Path | None, writes: bool
) -> None:
    """Trains, from the checkpoint where there is one; the main process tells how it goes."""
    from finetune.watch import MetricsFile, ProgressLine

    wandb = writes and config.logger.wandb != "disabled"
    if writes:
        trainer.add_callback(MetricsFile(folder / METRICS))
        if config.logger.progress:
            trainer.add_callback(ProgressLine())
    if wandb:
        from transformers.integrations import WandbCallback

        from conf.wandb_run import open_run

        out = Path(config.out)  # beside it, not in it
        run = open_run(config.logger, out.name, out.parent, asdict(config))
        trainer.add_callback(WandbCallback())
    trainer.args.eval_on_start &= checkpoint is None
    if checkpoint and writes:
        print(f"continues from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if wandb:
        run.finish()


def about(
    trainer: AnswerTrainer | PairTrainer, config: SftConfig, rows: list[Row]
) -> dict[str, Any]:
    """What the run was, for sft.json and the model card."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "format": 1,
        "kind": "conversations" if config.record == "sft.json" else "pairs",
        "model": config.model,
        "data": ", ".join(names(config.data)),
        "data_sha256": fingerprint(rows),
        "rows": len(rows) - trainer.left_out,
        "left_out": trainer.left_out,
        "chat_template": config.chat_template.name,
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "steps": trainer.state.global_step,
        "tokens": int(lines[-1]["num_input_tokens_seen"]),
        "first_loss": lines[0]["loss"],
        "loss": lines[-1]["loss"],
        "seconds": trainer.state.log_history[-1]["train_runtime"],
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "packages": {package: metadata.version(package) for package in PACKAGES},
    }


def save(base: Base, config: SftConfig, record: dict[str, Any], folder: Path) -> None:
    """Writes the model in the precision that it came in, with all that belongs to it, as both
    transformers 4 and 5 load it. The metrics come from the folder of the work."""
    import torch

    from model.families.hf_forms import write_both_forms

    base.model.generation_config.eos_token_id = base.tokenizer.eos_token_id
    if config.repetition_penalty is not None:
        base.model.generation_config.repetition_penalty = config.repetition_penalty
    torch.nn.Module.to(base.model, base.stored_dtype)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    write_both_forms(folder)
    (folder / "README.md").write_text(model_card(config, record))
    shutil.copyfile(folder.parent / METRICS, folder / METRICS)
    (folder / config.record).write_text(json.dumps(record, indent=2) + "\n")
