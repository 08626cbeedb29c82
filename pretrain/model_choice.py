"""Finds the model of a run that is started with `init_from=<folder>` but without `model=`.

The model of the folder becomes a choice of the config group `model`, so that keys such as
`model.max_seq_len` override its fields like those of any other choice.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import InputError
from model.config import ModelConfig

CHOICE = "of_init_from"
POSITIONS = ("max_seq_len", "rope_theta", "rope_scaling", "local_rope_theta")
"""Keys of the model that may differ from those of `init_from`."""
IGNORED = (
    *("name", "init", "initializer_range"),
    *("parametrization", "base_hidden_size", "base_num_layers", "base_head_dim"),
)
"""Keys of the model without effect on what weights that exist compute (`model.folding`)."""
ROUNDING = 1e-6
"""Relative difference up to which two floats are the same. That of float32 is 6e-8."""


def take_model(arguments: list[str], config_name: str) -> list[str]:
    """Returns the arguments of a command, with the model of `init_from` if `model=` is absent.

    Args:
        arguments: The command line.
        config_name: Name of the command's primary config.

    Raises:
        InputError: The folder's model is not supported.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser

    stated = [argument for argument in arguments if "=" in argument and argument[:1] != "-"]
    given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(stated)}
    folder = given["init_from"].value() if "init_from" in given else None
    if not folder or "model" in given:
        return arguments
    if given["init_from"].is_sweep_override():
        raise InputError(
            f"{given['init_from'].input_line}: a sweep over folders does not determine the model. "
            "Add model=, or start one run per folder."
        )
    path = Path(str(folder))
    known = (
        None if (path / "config.json").is_file() else _model_of_run(arguments, config_name, path)
    )
    _store(ConfigStore.instance(), known or _model_of_folder(path))
    return [f"model={CHOICE}", *arguments]  # in front of options such as --cfg


def _model_of_folder(folder: Path) -> dict[str, Any]:
    """Returns the model of a Hugging Face folder, named after the folder."""
    from model.families.folder import read_config

    return asdict(read_config(folder)) | {"name": folder.resolve().name}


def _model_of_run(arguments: list[str], config_name: str, folder: Path) -> dict[str, Any] | None:
    """Returns the model stored in the run folder, if that run was started from `folder`.

    A resumed run therefore does not need `folder` again. Returns None if there is no such run.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from conf.overrides import compose_command

    _store(ConfigStore.instance(), {"name": folder.resolve().name})
    overrides = [argument for argument in arguments if "=" in argument and argument[:1] != "-"]
    composed = compose_command(config_name, [*overrides, f"model={CHOICE}"])
    path = Path(str(composed.get("run_dir"))) / "config.yaml"
    if not path.is_file():
        return None
    started: Any = OmegaConf.to_container(OmegaConf.load(path))
    return started["model"] if started.get("init_from") == str(composed.init_from) else None


def _store(configs: Any, model: dict[str, Any]) -> None:
    """Registers a model as the choice CHOICE of the config group `model`."""
    configs.store(group="model", name=CHOICE, node=model)


def check_initial(found: ModelConfig, model: ModelConfig, folder: str) -> list[str]:
    """Returns one sentence per key that a run changes in the model that it starts from.

    Only the keys POSITIONS may change, since the weights do not depend on them. Floats that differ
    by rounding, such as 1e-05 and the same value in float32, are equal.

    Args:
        found: The model in the folder.
        model: The model of the run.
        folder: The folder.

    Raises:
        InputError: The models differ in other keys; the message has all of them.
    """
    theirs, ours = asdict(found), asdict(model)
    different = [key for key in ours if key not in IGNORED and not _is_same(theirs[key], ours[key])]
    fixed = [key for key in different if key not in POSITIONS]
    if fixed:
        values = ", ".join(f"model.{key}={ours[key]} instead of {theirs[key]}" for key in fixed)
        raise InputError(
            f"init_from={folder}: the run has another model than this folder: {values}. Remove "
            "model= and these keys to use the model of the folder, or choose another folder."
        )
    return [
        f"model.{key}={ours[key]} replaces {theirs[key]}, the value of init_from={folder}."
        for key in different
    ]


def _is_same(one: Any, other: Any) -> bool:
    """Returns True if two values are equal, except for the rounding of floats in them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=ROUNDING)
    return bool(one == other)
