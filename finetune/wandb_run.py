"""Weights & Biases for a tuning run; `transformers` logs into the run that is open."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import InputError

if TYPE_CHECKING:
    from finetune.config import SftConfig


def open_run(config: SftConfig) -> None:
    """Opens the run named after `out`; its files lie beside that folder, not in it.

    Raises:
        InputError: wandb=online without a key.
    """
    import wandb

    out = Path(config.out)
    logger = config.logger
    has_key = _has_key()
    if logger.wandb == "online" and not has_key:
        raise InputError("logger.wandb=online: there is no key; set WANDB_API_KEY, or use offline.")
    online = logger.wandb == "online" or (logger.wandb == "auto" and has_key)
    wandb.init(
        project=logger.project,
        entity=logger.entity,
        group=logger.group,
        name=out.name,
        mode="online" if online else "offline",
        dir=out.parent,
        config=asdict(config),
        settings=wandb.Settings(silent=True, console="off"),
    )


def close_run() -> None:
    """Flushes."""
    import wandb

    wandb.finish()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()
