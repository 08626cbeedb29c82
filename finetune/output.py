"""The folder that tuning makes: whole or not at all, and not made twice from the same inputs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import InputError
from finetune.config import DpoConfig, SftConfig
from finetune.resume import last_checkpoint, remove_checkpoints
from finetune.rows import Row, fingerprint, names

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


def is_done(config: SftConfig, inputs: str) -> bool:
    """Whether `out` already holds the result of these inputs.

    Raises:
        InputError: it holds something else, and `overwrite` is not set.
    """
    out = Path(config.out)
    if out.name in ("", ".."):
        raise InputError(f"out={out} has no name of its own: expected a folder to be made.")
    if config.overwrite or not out.exists():
        return False
    record = out / config.record
    if record.is_file() and json.loads(record.read_text())["inputs"] == inputs:
        return True
    made = "was made from other inputs" if record.is_file() else "holds something else"
    raise InputError(f"out={out} {made}: choose another folder, or give overwrite=true.")


@contextmanager
def staged(out: Path, inputs: str, *, writes: bool) -> Iterator[tuple[Path, Path | None]]:
    """Yields a folder beside `out` that replaces it at the end, and the checkpoint to continue
    from: one that a run from the same inputs left there. On an error the folder vanishes, unless
    it holds a checkpoint.

    writes: whether this process is the one that makes and renames the folder.
    """
    temporary = out.with_name(out.name + ".tmp")
    made_from = temporary / "inputs"
    # A folder of other inputs never looks like one of these, not even while it is removed.
    same = made_from.is_file() and made_from.read_text() == inputs
    checkpoint = last_checkpoint(temporary) if same else None
    if writes and checkpoint is None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        made_from.write_text(inputs)
    try:
        yield temporary, checkpoint
        if writes:
            remove_checkpoints(temporary)
            made_from.unlink()
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
    except BaseException:
        if writes and last_checkpoint(temporary) is None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


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
