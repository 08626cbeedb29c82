"""Runs a tuning job in the steps that supervised tuning and DPO share.

    settings -> rows -> trainer of `trl` -> training, with checkpoints -> a Hugging Face folder

`sft` and `dpo` differ in the rows that they read, the trainer that they build, and what they do
with the weights at the end. A `Method` holds these differences.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError
from conf.tokenizer_folder import read_template
from finetune.config import SftConfig
from finetune.output import (
    RESULT,
    check_out,
    inputs_fingerprint,
    is_done,
    output_of,
    staged,
    tuning_card,
)
from finetune.rows import Row, fingerprint, source_names
from finetune.sources import HUB, public_name
from finetune.template import choose_template, with_end

if TYPE_CHECKING:
    from finetune.prepare import Base

METRICS = "metrics.jsonl"
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class Method:
    """A tuning method, such as supervised tuning or DPO.

    unit: name of the rows that it reads, in the plural.
    read: function of (data, format, split, language) that returns the rows.
    build: function of (config, base, rows, number of processes, folder, validation rows) that
        returns the trainer. The trainer counts in `num_skipped` the rows that are too long.
    finish: function that writes the trained weights into `base.model`, or None.
    settings: keys of the config that the tuned folder records, next to those of every method.
    """

    unit: str
    read: Callable[[Any, str, str | None, str], list[Row]]
    build: Callable[..., Any]
    finish: Callable[[Any, Base], None] | None = None
    settings: tuple[str, ...] = ()


def run(config: SftConfig, method: Method) -> None:
    """Tunes the model and writes the folder `out`, unless it holds the same result already.

    Raises:
        InputError: the settings, model folder, data or template are invalid; `out` is unchanged.
    """
    go_offline_if_local(config)
    writes = os.environ.get("RANK", "0") == "0"
    check_out(config, writes=writes)
    model_dir, out = Path(config.model), Path(config.out)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config.split_batch(processes)
    if not config.check and not (model_dir / "config.json").is_file():
        raise InputError(
            f"model={model_dir}: config.json is missing. Give a Hugging Face model folder."
        )
    rows = method.read(config.data, config.format, config.split, config.language)
    held_out = config.validation
    validation = method.read(held_out, config.format, None, config.language) if held_out else None
    if config.check:
        if writes:
            print(f"{len(rows)} {method.unit} in {', '.join(source_names(config.data))}")
        return
    template, notice = choose_template(config.chat_template, model_dir)
    if notice and writes:
        print(notice)
    config = replace(config, chat_template=template)
    inputs = inputs_fingerprint(config, rows)
    if is_done(config, inputs):
        if writes:
            print(f"{out} is up to date (same inputs).")
        return

    from finetune.prepare import load

    base = load(model_dir)
    with staged(output_of(config), inputs, writes=writes) as (folder, checkpoint):
        trainer = method.build(config, base, rows, processes, folder, validation)
        train(trainer, config, folder, checkpoint, writes)
        if writes:
            if method.finish is not None:
                method.finish(trainer, base)
            record = {"inputs": inputs, **record_of(trainer, config, method, rows)}
            save(base, config, record, folder / RESULT)
    if writes:
        print(summary_line(out, record))


def go_offline_if_local(config: SftConfig) -> None:
    """Disables requests to the Hub if all training data are local; the model always is local."""
    if not any(name.startswith(HUB) for name in source_names(config.data)):
        os.environ["HF_HUB_OFFLINE"] = "1"


def train(
    trainer: Any, config: SftConfig, folder: Path, checkpoint: Path | None, writes: bool
) -> None:
    """Trains the model, from the checkpoint if there is one.

    Only the process that writes reports progress.
    """
    from finetune.callbacks import MetricsFile, ProgressLine

    use_wandb = writes and config.logger.wandb != "disabled"
    if writes:
        trainer.add_callback(MetricsFile(folder / METRICS))
        if config.logger.progress:
            trainer.add_callback(ProgressLine())
    if use_wandb:
        from transformers.integrations import WandbCallback

        from conf.wandb_run import open_run

        out = Path(config.out)  # wandb's files are stored next to it, not in it
        wandb_run = open_run(config.logger, out.name, out.parent, asdict(config))
        trainer.add_callback(WandbCallback())
    trainer.args.eval_on_start &= checkpoint is None
    if checkpoint and writes:
        print(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if use_wandb:
        wandb_run.finish()


def record_of(trainer: Any, config: SftConfig, method: Method, rows: list[Row]) -> dict[str, Any]:
    """Returns the record of a run, for sft.json or dpo.json and the model card."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "format": 1,
        "kind": method.unit,
        "model": Path(config.model).resolve().name,
        "data": ", ".join(map(public_name, source_names(config.data))),
        "data_sha256": fingerprint(rows),
        "rows": len(rows) - trainer.num_skipped,
        "left_out": trainer.num_skipped,
        "chat_template": config.template.name,
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "steps": trainer.state.global_step,
        "tokens": int(lines[-1]["num_input_tokens_seen"]),
        "first_loss": lines[0]["loss"],
        "loss": lines[-1]["loss"],
        "seconds": trainer.state.log_history[-1]["train_runtime"],
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "packages": {package: metadata.version(package) for package in PACKAGES},
        **{key: getattr(config, key) for key in method.settings},
    }


def save(base: Base, config: SftConfig, record: dict[str, Any], folder: Path) -> None:
    """Writes the model in the precision of its source, with tokenizer, model card and record.

    transformers 4 and 5 both load the folder. The metrics are copied from the parent folder.
    """
    import torch

    from model.families.model_files import ModelFiles

    base.model.generation_config.eos_token_id = _ends(base, config)
    if config.repetition_penalty is not None:
        base.model.generation_config.repetition_penalty = config.repetition_penalty
    torch.nn.Module.to(base.model, base.stored_dtype)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    ModelFiles.read(folder).write(folder, tuning_card(config, record))
    shutil.copyfile(folder.parent / METRICS, folder / METRICS)
    (folder / config.record).write_text(json.dumps(record, indent=2) + "\n")


def _ends(base: Base, config: SftConfig) -> int | list[int]:
    """Returns the ids at which generation ends.

    A model that keeps its own template keeps the ids of its generation config.
    """
    ends: list[Any] = [base.tokenizer.eos_token_id]
    if read_template(Path(config.model)) == config.template.template:
        known = base.model.generation_config.eos_token_id
        end_token = with_end(config.template, base.tokenizer).end_token
        end = base.tokenizer.convert_tokens_to_ids(end_token) if end_token else None
        ends = [*(known if isinstance(known, list) else [known]), *ends, end]
    found = list(dict.fromkeys(end for end in ends if end is not None))
    return found if len(found) > 1 else found[0]


def summary_line(out: Path, record: dict[str, Any]) -> str:
    """Returns the summary line that a tuning command prints at its end."""
    left_out = record["left_out"]
    skipped = f" ({left_out} skipped, longer than max_seq_len)" if left_out else ""
    return (
        f"{out}: {record['steps']} steps on {record['rows']} {record['kind']}{skipped}, loss "
        f"{record['first_loss']:.3f} -> {record['loss']:.3f}, {record['seconds']:.0f} s"
    )
