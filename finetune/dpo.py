"""`python -m finetune dpo`: direct preference optimisation (Rafailov et al. 2023, arXiv
2305.18290) of a Hugging Face folder by LoRA, on `trl` and `peft`.

The base with its adapters off is the reference. At the end the adapters are merged, so that the
result is again a folder that stock `transformers` loads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import InputError
from finetune.config import DpoConfig
from finetune.output import RESULT, check_out, inputs_fingerprint, is_done, output_of, staged
from finetune.rows import names, read_pairs
from finetune.sft import about, save, stay_here, told, tune

if TYPE_CHECKING:
    from transformers import Trainer

    from finetune.prepare import Base

SETTINGS = ("beta", "lora_rank", "lora_alpha")
"""What the record of DPO says beside that of SFT."""


def dpo(config: DpoConfig) -> None:
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
    rows = read_pairs(config.data, config.format, config.split, config.language)
    held_out = config.validation
    validation = read_pairs(held_out, config.format, None, config.language) if held_out else None
    if config.check:
        if writes:
            print(f"{len(rows)} pairs in {', '.join(names(config.data))}")
        return
    inputs = inputs_fingerprint(config, rows)
    if is_done(config, inputs):
        if writes:
            print(f"{out}: done already, from the same inputs")
        return

    from finetune.prepare import load
    from finetune.prepare_dpo import build_trainer

    base = load(model_dir)
    with staged(output_of(config), inputs, writes=writes) as (folder, checkpoint):
        trainer = build_trainer(config, base, rows, processes, folder, validation)
        tune(trainer, config, folder, checkpoint, writes)
        if writes:
            merge(trainer, base)
            settings = {key: getattr(config, key) for key in SETTINGS}
            record = {"inputs": inputs, **about(trainer, config, rows), **settings}
            save(base, config, record, folder / RESULT)
    if writes:
        print(told(out, record))


def merge(trainer: Trainer, base: Base) -> None:
    """Adds the adapters to the weights of `base.model`, in fp32, and takes them off."""
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    merged = adapted.merge_and_unload()
    assert merged is base.model
