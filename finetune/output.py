"""The folder that tuning makes: whole or not at all, and not made twice from the same inputs."""

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
from conf.output_kinds import MODEL, read_json
from conf.outputs import Output
from finetune.config import DpoConfig, SftConfig
from finetune.resume import last_checkpoint
from finetune.rows import Row, fingerprint, names
from finetune.sources import HUB

MARK, RESULT = "inputs", "result"
"""In the folder of the work: what it is made of, and the model that is to become the output."""

# These say where the result goes and how it is watched, not what it is.
WATCHING = ("logger", "log_every", "validation", "validate_every", "checkpoint_every")
NOT_INPUTS = ("model", "out", "overwrite", "check", "device", *WATCHING)
# These say where the rows come from, which are hashed themselves.
SOURCE = ("data", "format", "split", "language")


def inputs_fingerprint(config: SftConfig, rows: list[Row]) -> str:
    """sha256 of all that decides the result: settings, rows, weights and tokenizer."""
    without = NOT_INPUTS + SOURCE
    settings = {key: value for key, value in asdict(config).items() if key not in without}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(fingerprint(rows).encode())
    model = Path(config.model)
    for path in sorted([*model.glob("*.safetensors"), *model.glob("*.json")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
    return digest.hexdigest()


def output_of(config: SftConfig) -> Output:
    """Returns the folder that a command makes."""
    data = [name for name in names(config.data) if not name.startswith(HUB)]
    return Output(config.out, MODEL, config.overwrite, [config.model, *data])


def check_out(config: SftConfig, *, writes: bool) -> None:
    """Raises InputError where `out`, or the folder of the work on it, holds what is not ours."""
    output = output_of(config)
    output.check_foreign()
    work = _work_folder(output)
    if writes:
        clean(work)
    if writes and work.exists() and not (work / MARK).is_file():
        raise InputError(
            f"out={config.out}: {work} is in the way, where checkpoints are kept meanwhile, and "
            "is not from an earlier call. Remove it, or choose another folder."
        )


def is_done(config: SftConfig, inputs: str) -> bool:
    """Whether `out` already holds the result of these inputs.

    Raises:
        InputError: it holds another model, and `overwrite` is not set.
    """
    output = output_of(config)
    record = read_json(output.path / config.record)
    if not config.overwrite and record.get("inputs") == inputs:
        work = _work_folder(output)
        if _made_from(work) == inputs:  # the process was killed while it removed this
            discard(work)
        return True
    output.check("a model from other inputs" if record else None)
    return False


@contextmanager
def staged(output: Output, inputs: str, *, writes: bool) -> Iterator[tuple[Path, Path | None]]:
    """Yields the folder of the work, next to the output, and the checkpoint to continue from: one
    that a run from the same inputs left there. What is in `RESULT` of it at the end becomes the
    output. On an error the folder vanishes, unless it holds a checkpoint.

    writes: whether this process is the one that makes and renames the folder.
    """
    work = _work_folder(output)
    result = work / RESULT
    # A folder of other inputs never looks like one of these, not even while it is removed.
    checkpoint = last_checkpoint(work) if _made_from(work) == inputs else None
    if writes:
        restore(result, output.path)
        discard(result if checkpoint else work)
        result.mkdir(parents=True)
        (work / MARK).write_text(inputs)
    try:
        yield work, checkpoint
        if writes:
            output.put(result)
            discard(work)
    except BaseException:
        if writes and last_checkpoint(work) is None:
            discard(work)
        raise


def _made_from(work: Path) -> str | None:
    return (work / MARK).read_text() if (work / MARK).is_file() else None


def _work_folder(output: Output) -> Path:
    return output.path.with_name(output.path.name + ".tmp")


def model_card(config: SftConfig, record: dict[str, Any]) -> str:
    """README.md of the folder."""
    name, base = Path(config.out).name, Path(config.model).name
    data = ", ".join(Path(name).name for name in names(config.data))
    if isinstance(config, DpoConfig):
        how, unit, loss_unit = " by direct preference optimisation (arXiv 2305.18290)", "pairs", ""
        adapters = f"LoRA, rank {config.lora_rank}, alpha {config.lora_alpha}, merged"
        method = {
            "loss on": "better against worse answers, prompts not scored",
            "beta": f"{config.beta:g}",
            "adapters": adapters,
        }
    else:
        how, unit, loss_unit = "", "sequences", " nats per token"
        method = {"loss on": "the assistant's turns only"}
    rows = {
        "base model": base,
        "data": f"{data}, {record['rows']:,} {record['kind']}, sha256 {record['data_sha256'][:16]}",
        **method,
        "chat template": config.chat_template.name,
        "steps": f"{record['steps']:,} of {config.batch_size} {unit}",
        "tokens": f"{record['tokens']:,}",
        "learning rate": f"{config.learning_rate:g}, {config.schedule}",
        "last loss": f"{record['loss']:.3f}{loss_unit}",
        "precision": record["precision"],
        "seed": str(config.seed),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# {name}\n\n"
        f"A chat model tuned with Headwater{how}.\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'chat = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n```\n"
    )
