"""The training whose arguments follow `--` on the command line, and its composed config."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError, did_you_mean
from conf.overrides import SWEEP

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

overrides: list[str] = []
"""The arguments after `--`; set by `launch.__main__`."""
command_line: list[str] = []
"""All arguments, as they were given."""
TRAINING_KEYS = ("model", "recipe", "optim", "parallel", "precision", "checkpoint", "validation")
"""Keys of `python -m pretrain` that users often give to a launcher by mistake."""
WITH_TRAINING = ("local", "slurm", "sky", "chain", "plan", "study")
"""Commands that take the arguments of a training run after `--`."""


def take_overrides() -> None:
    """Moves the arguments after `--` from sys.argv to `overrides`, so that Hydra ignores them.

    Raises:
        InputError: a key of the training run precedes `--`, or the command starts no training
            run but has a `--`.
    """
    command_line[:] = sys.argv[1:]
    name = sys.argv[1] if sys.argv[1:] else ""
    if "--" in sys.argv:
        at = sys.argv.index("--")
        overrides[:] = sys.argv[at + 1 :]
        del sys.argv[at:]
        if name not in WITH_TRAINING:
            raise InputError(
                f"python -m launch {name} starts no training run. Give its keys without `--` "
                "before them."
            )
    sys.argv[1:] = ["dry_run=true" if part == "--dry-run" else part for part in sys.argv[1:]]
    if name in ("slurm", "sky"):  # --multirun belongs to the training run, even before `--`
        overrides[:0] = [part for part in sys.argv if part in SWEEP]
        sys.argv[:] = [part for part in sys.argv if part not in SWEEP]
    if name in WITH_TRAINING and (overrides or name != "plan"):
        for argument in sys.argv[2:]:
            key = re.split(r"[.=]", argument.lstrip("+~"))[0]
            if key in TRAINING_KEYS:
                raise InputError(
                    f"{argument} is a key of the training run. Put it after `--`, as in "
                    f"python -m launch {name} ... -- {argument}"
                )


@dataclass(frozen=True)
class Training:
    """A run of `python -m pretrain` with overrides; `config` is its composed config as YAML."""

    overrides: list[str]
    config: str
    name: str
    run_dir: Path

    def settings(self) -> PretrainConfig:
        """Returns the config as the run will have it. Raises InputError if it is wrong."""
        from omegaconf import OmegaConf

        from conf.entry import to_settings
        from pretrain.config import PretrainConfig

        stated = OmegaConf.create(self.config)
        settings: PretrainConfig = to_settings(OmegaConf.merge(PretrainConfig, stated))
        return settings


def compose(given: list[str]) -> Training:
    """Returns a training run with its config, which a separate `python -m pretrain` composes.

    Raises:
        InputError: the overrides are wrong.
    """
    # Imported here, because a job's own script calls `outcome` with a Python without packages.
    from omegaconf import OmegaConf

    if any(part.startswith("-") for part in given):
        raise InputError(
            f"-- {' '.join(given)}: options are not supported here. Give overrides of pretrain as "
            "key=value."
        )
    text = answer(["pretrain", *given, "--resolve", "--cfg", "job"])
    config: Any = OmegaConf.create(text)
    return Training(given, text, str(config.name), Path(str(config.run_dir)))


def compose_command_line(words: list[str]) -> Any:
    """Returns the checked settings of a command line.

    words: the arguments of `python -m`: folder, command and overrides.

    Raises:
        InputError: the command would refuse the settings.
    """
    from conf.entry import compose_settings

    commands = importlib.import_module(f"{words[0]}.__main__").COMMANDS
    name = words[1] if len(words) > 1 else ""
    if name not in commands:
        raise InputError(f"unknown command '{name}'{did_you_mean(name, commands)}.")
    return compose_settings(commands[name], words[2:])


def answer(command: list[str], timeout_seconds: float | None = None) -> str:
    """Returns the output of `python -m ...`. Raises InputError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=timeout_seconds
    )
    if done.returncode:
        last_line = (done.stderr.strip() or done.stdout.strip()).split("\n")[-1]
        fallback = f"`python -m {shlex.join(command)}` ended with code {done.returncode}."
        raise InputError(last_line.removeprefix("error: ") or fallback)
    return done.stdout


def outcome(run_dir: Path) -> dict[str, Any] | None:
    """Returns how the last process of a run ended, or None if it still runs or was killed."""
    try:
        found: dict[str, Any] = json.loads((run_dir / "outcome.json").read_text())
    except (OSError, ValueError):
        return None
    return found
