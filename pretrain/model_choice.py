"""`init_from=<folder>` without `model=`: the model is that of the folder.

The model becomes one more choice of the group `model`, so that keys such as `model.max_seq_len`
apply on top of it as on top of any other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import InputError
from model.config import ModelConfig

CHOICE = "of_init_from"


def take_model(arguments: list[str], config_name: str) -> list[str]:
    """Returns the arguments of a command, with the model of `init_from` where no `model=` is given.

    config_name: of the command's primary config. Raises InputError where the folder has no model
    that the decoder can be.
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
            f"{given['init_from'].input_line}: the shape of the model follows from one folder. "
            "Give model= too, or start a run for each folder."
        )
    path = Path(str(folder))
    known = None if (path / "config.json").is_file() else of_run(arguments, config_name, path)
    store(ConfigStore.instance(), known or of_folder(path))
    return [f"model={CHOICE}", *arguments]  # in front of options such as --cfg


def of_folder(folder: Path) -> dict[str, Any]:
    """Returns the shape of a Hugging Face folder's model, under the name of the folder."""
    from model.families.folder import read_config

    return asdict(read_config(folder)) | {"name": folder.resolve().name}


def of_run(arguments: list[str], config_name: str, folder: Path) -> dict[str, Any] | None:
    """Returns the shape that the run folder states, where the run was begun from `folder`: a resume
    does not need that folder any more. None where there is no such run."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from conf.overrides import compose_command

    store(ConfigStore.instance(), {"name": folder.resolve().name})
    overrides = [argument for argument in arguments if "=" in argument and argument[:1] != "-"]
    composed = compose_command(config_name, [*overrides, f"model={CHOICE}"])
    path = Path(str(composed.get("run_dir"))) / "config.yaml"
    if not path.is_file():
        return None
    begun: Any = OmegaConf.to_container(OmegaConf.load(path))
    return begun["model"] if begun.get("init_from") == str(composed.init_from) else None


def store(configs: Any, model: dict[str, Any]) -> None:
    """Makes a model the choice."""
    configs.store(group="model", name=CHOICE, node=model)


def check_initial(found: ModelConfig, model: ModelConfig, folder: str) -> list[str]:
    """Returns what a run changes of the model that it starts from, a sentence for each key; a
    longer context needs no other weights. Raises InputError where the shapes differ.

    found: what the folder holds.
    """
    changes = []
    for key, now in asdict(model).items():
        was = getattr(found, key)
        if was == now or key in ("name", "init", "initializer_range"):
            continue
        if key not in ("max_seq_len", "rope_theta"):
            raise InputError(
                f"model.{key}={now}, but init_from={folder} has {was}. Leave model= and "
                f"model.{key} out, and the model is that of the folder, or start from a folder of "
                "this shape."
            )
        changes.append(f"model.{key}={now} in this run; init_from={folder} has {was}.")
    return changes
