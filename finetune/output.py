"""The output folder of tuning: complete or absent, and not made again from the same inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import clean, discard, restore
from conf.model_card import CardConfig, inherited_metadata, model_card
from conf.output_kinds import MODEL, read_json
from conf.outputs import Output
from finetune.checkpoints import last_checkpoint
from finetune.config import DpoConfig, SftConfig
from finetune.rows import Row, fingerprint, source_names
from finetune.sources import HUB

INPUTS, RESULT = "inputs", "result"
"""Names in the work folder: the file with the hash of the inputs, and the folder of the model."""

CHAT_EXAMPLE = """\
chat = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
"""
"""Lines of the model card that generate an answer."""

MONITORING = ("logger", "log_every", "validation", "validate_every", "checkpoint_every")
NOT_INPUTS = ("model", "out", "overwrite", "check", "device", *MONITORING)
"""Keys whose values do not change the result. The files of `model` are hashed, not its path."""
SOURCE = ("data", "format", "split", "language")
"""Keys that select the rows; the rows themselves are hashed instead."""


def inputs_fingerprint(config: SftConfig, rows: list[Row]) -> str:
    """Returns the sha256 of the settings, rows, weights and tokenizer, which decide the result."""
    without = NOT_INPUTS + SOURCE
    settings = {key: value for key, value in asdict(config).items() if key not in without}
    if config.card == CardConfig():
        del settings["card"]  # as in results of earlier versions
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(fingerprint(rows).encode())
    model = Path(config.model)
    for path in sorted([*model.glob("*.safetensors"), *model.glob("*.json")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
    return digest.hexdigest()


def output_of(config: SftConfig) -> Output:
    """Returns the output folder of a tuning command."""
    data = [name for name in source_names(config.data) if not name.startswith(HUB)]
    return Output(config.out, MODEL, config.overwrite, [config.model, *data])


def check_out(config: SftConfig, *, writes: bool) -> None:
    """Raises InputError if `out` or its work folder holds files that Headwater did not make."""
    output = output_of(config)
    output.check_foreign()
    work = _work_folder(output)
    if writes:
        clean(work)
    if writes and work.exists() and not (work / INPUTS).is_file():
        raise InputError(
            f"out={config.out}: checkpoints would be stored in {work}, which exists and was not "
            "made by an earlier call. Remove that folder, or choose another out."
        )


def is_done(config: SftConfig, inputs: str) -> bool:
    """Returns whether `out` already holds the result of these inputs.

    Raises:
        InputError: `out` holds another model, and `overwrite` is not set.
    """
    output = output_of(config)
    record = read_json(output.path / config.record)
    if not config.overwrite and record.get("inputs") == inputs:
        work = _work_folder(output)
        if _inputs_of(work) == inputs:  # the process was killed while removing this folder
            discard(work)
        return True
    output.check("a model from other inputs" if record else None)
    return False


@contextmanager
def staged(output: Output, inputs: str, *, writes: bool) -> Iterator[tuple[Path, Path | None]]:
    """Yields the work folder next to the output, and the checkpoint to resume from, or None.

    The run resumes from a checkpoint only if a run with the same inputs left it. At the end, the
    folder `RESULT` in the work folder becomes the output. After an error, the work folder is
    removed unless it holds a checkpoint.

    Args:
        output: the folder to make.
        inputs: the fingerprint of the inputs.
        writes: whether this process makes and renames the folder.
    """
    work = _work_folder(output)
    result = work / RESULT
    # A work folder from other inputs is never resumed, not even if it is only half removed.
    checkpoint = last_checkpoint(work) if _inputs_of(work) == inputs else None
    if writes:
        restore(result, output.path)
        discard(result if checkpoint else work)
        result.mkdir(parents=True)
        (work / INPUTS).write_text(inputs)
    try:
        yield work, checkpoint
        if writes:
            output.put(result)
            discard(work)
    except BaseException:
        if writes and last_checkpoint(work) is None:
            discard(work)
        raise


def _inputs_of(work: Path) -> str | None:
    return (work / INPUTS).read_text() if (work / INPUTS).is_file() else None


def _work_folder(output: Output) -> Path:
    return output.path.with_name(output.path.name + ".tmp")


def tuning_card(config: SftConfig, record: dict[str, Any]) -> str:
    """Returns the text of the folder's README.md."""
    name, base = Path(config.out).name, record["model"]
    data = record["data"]
    if isinstance(config, DpoConfig):
        how, unit, loss_unit = " by direct preference optimization (arXiv 2305.18290)", "pairs", ""
        adapters = f"LoRA, rank {config.lora_rank}, alpha {config.lora_alpha}, merged"
        method = {
            "loss on": "better against worse answers; prompts are not scored",
            "beta": f"{config.beta:g}",
            "adapters": adapters,
        }
    else:
        how, unit, loss_unit = "", "sequences", " nats per token"
        method = {"loss on": "the assistant's turns only"}
    facts = {
        "base model": base,
        "data": f"{data}, {record['rows']:,} {record['kind']}, sha256 {record['data_sha256'][:16]}",
        **method,
        "chat template": record["chat_template"],
        "steps": f"{record['steps']:,} of {config.batch_size} {unit}",
        "tokens": f"{record['tokens']:,}",
        "learning rate": f"{config.learning_rate:g}, {config.schedule}",
        "last loss": f"{record['loss']:.3f}{loss_unit}",
        "precision": record["precision"],
        "seed": str(config.seed),
    }
    metadata = config.card.metadata(inherited_metadata(Path(config.model)))
    summary = f"A chat model tuned with Headwater{how}."
    return model_card(name, summary, facts, CHAT_EXAMPLE, metadata)
