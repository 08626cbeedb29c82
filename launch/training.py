"""The training command behind `--` on the command line, and what it composes to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import InputError

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

overrides: list[str] = []
"""What stands behind `--`; set by `launch.__main__`."""
typed: list[str] = []
"""The whole command line, as it was given."""
TRAINING_KEYS = ("model", "recipe", "optim", "parallel", "precision", "checkpoint", "validation")
"""Those groups of `python -m pretrain` that people may give to a launcher."""
WITH_TRAINING = ("local", "slurm", "chain", "plan")
SWEEP = ("--multirun", "-m")


def take_overrides() -> None:
    """Takes `-- key=value ...` out of the arguments: Hydra would read them as this command's.
    Raises InputError for a key of the training that stands before it, and for a command that has no
    training."""
    typed[:] = sys.argv[1:]
    name = sys.argv[1] if sys.argv[1:] else ""
    if "--" in sys.argv:
        at = sys.argv.index("--")
        overrides[:] = sys.argv[at + 1 :]
        del sys.argv[at:]
        if name not in WITH_TRAINING:
            raise InputError(f"{name} has no training: give its keys without `--` before them.")
    sys.argv[1:] = ["dry_run=true" if part == "--dry-run" else part for part in sys.argv[1:]]
    if name == "slurm":  # a sweep is of the training, on whichever side it is said
        overrides[:0] = [part for part in sys.argv if part in SWEEP]
        sys.argv[:] = [part for part in sys.argv if part not in SWEEP]
    if name in WITH_TRAINING and (overrides or name != "plan"):
        for argument in sys.argv[2:]:
            key = re.split(r"[.=]", argument.lstrip("+~"))[0]
            if key in TRAINING_KEYS:
                raise InputError(
                    f"{argument} is of the training: put it behind `--`, as in "
                    f"python -m launch {name} ... -- {argument}"
                )


def quote_more() -> None:
    """Quotes what stands behind `more.STEP=`, the words of a command line, which Hydra would read
    as a value of its own."""
    for number, argument in enumerate(sys.argv):
        key, _, words = argument.partition("=")
        if key.startswith("more.") and not words.startswith(("'", '"')):
            escaped = words.replace("'", "\\'")
            sys.argv[number] = f"{key}='{escaped}'"


@dataclass(frozen=True)
class Training:
    """`python -m pretrain` with overrides. config: as YAML."""

    overrides: list[str]
    config: str
    name: str
    run_dir: Path

    def settings(self) -> PretrainConfig:
        """Returns the config as the run will have it. Raises InputError."""
        from omegaconf import OmegaConf

        from conf.entry import to_settings
        from pretrain.config import PretrainConfig

        stated = OmegaConf.create(self.config)
        settings: PretrainConfig = to_settings(OmegaConf.merge(PretrainConfig, stated))
        return settings


def compose(given: list[str]) -> Training:
    """Composes the run's config as the run will, in a process of its own. Raises InputError."""
    # Here, since a job's own script reads `outcome` where there may be no packages.
    from omegaconf import OmegaConf

    if any(part.startswith("-") for part in given):
        raise InputError(
            f"-- {' '.join(given)}: expected overrides of pretrain, key=value, and no options."
        )
    text = answer(["pretrain", *given, "--resolve", "--cfg", "job"])
    config: Any = OmegaConf.create(text)
    return Training(given, text, str(config.name), Path(str(config.run_dir)))


def answer(command: list[str]) -> str:
    """What `python -m command` prints. Raises InputError with the same sentence where it is refused
    there."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip().split("\n")[-1].removeprefix("error: "))
    return done.stdout


def outcome(run_dir: Path) -> dict[str, Any] | None:
    """How the last process of a run ended; None while it runs, and after a kill."""
    try:
        found: dict[str, Any] = json.loads((run_dir / "outcome.json").read_text())
    except (OSError, ValueError):
        return None
    return found
