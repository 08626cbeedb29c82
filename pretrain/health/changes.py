"""Finds what changed since the last start of a run, in its config and in its software."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.errors import InputError
from conf.renamed import load_run_config
from conf.text import flatten
from pretrain.config import PretrainConfig

GUARDED = ("optim", "objective", "precision", "init_from", "branch_from")
"""Keys that decide how the weights are updated, which may change only if `allow_change` names them.

Model, data and order are compared with the checkpoint instead."""
FREE = ("run_dir", "name", "stop_after", "allow_change")
"""Keys that may differ at each start and are not compared."""


def check_changes(config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the values (before, now) of each key that changed since the last start.

    Raises InputError if guarded keys changed that `allow_change` names neither directly nor by
    their group.
    """
    path = Path(config.run_dir) / "config.yaml"
    if not path.exists():
        return {}
    before = settings(load_run_config(path))
    now = settings(OmegaConf.structured(config))
    found = {
        key: (before[key], now[key])
        for key in before
        if key in now and before[key] != now[key] and not _under(key, FREE)
    }
    refused = [k for k in found if _under(k, GUARDED) and not _under(k, config.allow_change)]
    if refused:
        difference = ", ".join(f"{key} was {found[key][0]}, now {found[key][1]}" for key in refused)
        raise InputError(
            f"{config.run_dir} was started with other settings ({difference}). Restore them, or "
            f"allow the change with 'allow_change=[{','.join(refused)}]'."
        )
    return found


def settings(config: Any) -> dict[str, Any]:
    """Returns the values of a config by dotted key, with all parameter groups as one value."""
    content: Any = OmegaConf.to_container(config)
    groups = content.get("optim", {}).pop("groups", {})
    return flatten(content) | {"optim.groups": groups}


def changed_software(run_dir: Path, now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns (before, now) of each software version that changed: packages, Python, git commit."""
    path = run_dir / "env.json"
    try:
        before = flatten(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
    here = flatten(now)
    keys = [key for key in here if key.startswith(("packages.", "python", "git", "torch"))]
    return {k: (before[k], here[k]) for k in keys if k in before and before[k] != here[k]}


def _under(key: str, names: Any) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
