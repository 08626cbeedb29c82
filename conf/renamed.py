"""Renamed config keys: the old names still work, and a note states the new name.

To rename a key, add it to `RENAMED`. This covers command lines, the YAML files that a command
composes, and the `config.yaml` of runs that were made under the old name.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.terminal import print_error

RENAMED = {
    "optim.clip_norm": "optim.max_grad_norm",
    "optim.muon_momentum": "optim.options.momentum",
    "optim.muon_steps": "optim.options.ns_steps",
}
"""Current names of dotted keys, keyed by their old names."""
MUON_ONLY = ("optim.muon_momentum", "optim.muon_steps")
"""Keys that old configs list for every optimizer; they are dropped unless the optimizer is Muon."""


def current_key(key: str) -> str:
    """Returns the current name of a dotted key, and prints a note if it was renamed."""
    if key in RENAMED:
        _announce(key)
    return RENAMED.get(key, key)


def rename_keys(content: Any, package: str = "", announce: bool = True) -> Any:
    """Renames the keys of nested dictionaries in place, and returns the dictionaries.

    package: dotted key that the content belongs under.

    Raises:
        InputError: a key is given under both names.
    """
    for old, new in RENAMED.items():
        if package and not (old.startswith(f"{package}.") and new.startswith(f"{package}.")):
            continue
        holder, name = _holder(content, _relative(old, package))
        if holder is None or name not in holder:
            continue
        if old in MUON_ONLY and holder.get("name", "muon") != "muon":
            del holder[name]
            continue
        target, new_name = _holder(content, _relative(new, package), create=True)
        if target is None or new_name in target:
            raise InputError(
                f"{old}={holder[name]}: {new}, the new name of this key, is given too. Remove one."
            )
        target[new_name] = holder.pop(name)
        if announce:
            _announce(old)
    return content


def load_run_config(path: Path) -> Any:
    """Returns the `config.yaml` of a run as an OmegaConf config, with its keys renamed."""
    from omegaconf import OmegaConf

    stored = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return OmegaConf.create(rename_keys(stored, announce=False))


def rename_in_yaml() -> None:
    """Makes Hydra rename keys in each YAML file that it composes."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf

    class RenamingSource(FileConfigSource):
        """Reads YAML files and renames their keys."""

        def load_config(self, config_path: str) -> ConfigResult:
            """Returns the content of a file, such as `optim/adamw`, with its keys renamed."""
            result = super().load_config(config_path)
            package = result.header.get("package") or "_group_"
            group = config_path.rpartition("/")[0].replace("/", ".")
            package = {"_group_": group, "_global_": ""}.get(package, package)
            stored = OmegaConf.to_container(result.config, resolve=False)
            if isinstance(stored, dict):
                result.config = OmegaConf.create(rename_keys(stored, package))
            return result

    Plugins.instance()  # registers Hydra's own sources, which must come first
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = RenamingSource


def _relative(key: str, package: str) -> list[str]:
    return key.removeprefix(f"{package}." if package else "").split(".")


def _holder(content: Any, names: list[str], create: bool = False) -> tuple[Any, str]:
    """Returns the dictionary that holds a dotted key, or None, and the last name in the key."""
    *outer, name = names
    for one in outer:
        if create and isinstance(content, dict):
            content.setdefault(one, {})
        content = content.get(one) if isinstance(content, dict) else None
    return (content if isinstance(content, dict) else None), name


@cache
def _announce(old: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        with redirect_stderr(sys.__stderr__):  # while Hydra runs, stderr is redirected
            print_error(f"note: {old} is now named {RENAMED[old]}. The old name still works.")
