"""The trunk of a branch: the step of another run that it starts from, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import write_text
from conf.renamed import load_run_config, rename_keys
from data_pipeline.store.storage import StorageError, is_remote
from pretrain.checkpoints import files, find, mirror
from pretrain.checkpoints.files import CheckpointError
from pretrain.config import PretrainConfig

FILE = "trunk.json"
"""File in the run folder of a branch that describes its trunk, so that a resume does not need it"""
LEFT_OUT = ("files", "hooks", "trunk")
"""Metadata of the trunk's checkpoint that the branch does not need later."""


@dataclass(frozen=True)
class Trunk:
    """The step of a run that a branch starts from.

    Attributes:
        run: The run folder, or the URL of the mirror of its checkpoints.
        step: The step.
        about: Metadata of the checkpoint of that step.
        parents: The runs and steps that the branch descends from, the nearest first, in the form
            that `env.json` stores.
    """

    run: str
    step: int
    about: dict[str, Any]
    parents: list[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        """The config that the run had at that step."""
        config: dict[str, Any] = self.about["config"]
        return config

    @property
    def label(self) -> str:
        """The run and step as `branch_from` gives them."""
        return f"{self.run}@{self.step}"

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `trunk.json`."""
        kept = {key: value for key, value in self.about.items() if key not in LEFT_OUT}
        return {"run": self.run, "step": self.step, "about": kept, "parents": self.parents}


def parse(branch_from: str) -> tuple[str, int]:
    """Returns the run and the step that a value of `branch_from` names."""
    run, _, step = branch_from.rpartition("@")
    if not run or not step.isdecimal() or not int(step):
        raise InputError(
            f"branch_from={branch_from}: expected <run folder>@<step>, such as runs/trunk@12000. "
            "Give a step that has a checkpoint."
        )
    return run.rstrip("/"), int(step)


def known_trunk(branch_from: str, run_dir: Path, copy_to: str | None = None) -> Trunk:
    """Returns the trunk of a branch, which its earlier starts recorded, or else from its folder.

    Args:
        branch_from: The key `branch_from`.
        run_dir: The run folder of the branch.
        copy_to: The mirror of the branch's checkpoints.

    Raises:
        InputError: The value is malformed, or there is no checkpoint of the step.
    """
    asked = parse(branch_from)
    known = recorded(run_dir)
    if known is not None and (known.run, known.step) == asked:
        return known
    try:
        return read_trunk(branch_from)
    except InputError:
        for about in find.manifests(run_dir / "checkpoints", copy_to) or []:
            known = Trunk(**about["trunk"]) if "trunk" in about else None
            if known is not None and (known.run, known.step) == asked:
                return known
        raise


def recorded(run_dir: Path) -> Trunk | None:
    """Returns the trunk that is recorded in a run folder, or None."""
    try:
        return Trunk(**json.loads((run_dir / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def record(trunk: Trunk, run_dir: Path) -> None:
    """Writes `trunk.json` into the run folder of a branch."""
    write_text(run_dir / FILE, json.dumps(trunk.to_json(), indent=1))


def read_trunk(branch_from: str) -> Trunk:
    """Returns the step of the run that `branch_from` names, from its checkpoint or its mirror.

    Only the checkpoint's manifest is read.

    Raises:
        InputError: There is no checkpoint of the step.
    """
    run, step = parse(branch_from)
    about, problem = _metadata(run, step)
    if about is None:
        raise CheckpointError(f"branch_from={branch_from}: {problem}")
    if "config" not in about:
        about["config"] = _config_of_run(run, branch_from)
    rename_keys(about["config"], announce=False)
    parent = {
        "kind": "branch",
        "run": run if is_remote(run) else str(Path(run).absolute()),
        "name": about["config"].get("name"),
        "step": step,
        "tokens": about["tokens"],
        "order": about["order"],
    }
    return Trunk(run, step, about, [parent, *about.get("parents", [])])


def comparable(about: dict[str, Any], config: PretrainConfig) -> dict[str, Any]:
    """Returns the metadata of a trunk with what a branch may change in the model.

    That is `model.max_seq_len`, on which no weight depends.
    """
    return about | {"model": about["model"] | {"max_seq_len": config.model.max_seq_len}}


def mirror_of(run: str) -> str | None:
    """Returns the URL of the mirror of a run's checkpoints, or None."""
    if is_remote(run):
        return run
    path = Path(run) / "config.yaml"
    url = load_run_config(path).checkpoint.get("copy_to") if path.is_file() else None
    return None if url is None else str(url)


def _metadata(run: str, step: int) -> tuple[dict[str, Any] | None, str]:
    """Returns the metadata of a checkpoint, or None and why it cannot be read."""
    folder = Path(run) / "checkpoints"
    problem = f"{folder} has no checkpoint of step {step}"
    if not is_remote(run) and (folder / f"step_{step}").is_dir():
        try:
            return files.read_manifest(folder / f"step_{step}"), ""
        except (OSError, ValueError) as error:
            problem = f"{folder / f'step_{step}'} cannot be read ({error})"
    url = mirror_of(run)
    steps = [files.step_of(path.name) for path in files.checkpoints_in(folder)]
    if url is not None:
        try:
            steps += mirror.steps(url)
            if step in mirror.steps(url):
                return mirror.manifest(url, step), ""
            problem += f", nor has its mirror {url}" if url != run else ""
        except (StorageError, ValueError) as error:
            problem += f", and its mirror {url} cannot be read ({str(error).rstrip('.')})"
    known = ", ".join(str(one) for one in sorted({one for one in steps if one is not None}))
    return None, (f"{problem}. Give a step that has a checkpoint{f': {known}' if known else ''}.")


def _config_of_run(run: str, branch_from: str) -> dict[str, Any]:
    """Returns the config of a run whose checkpoints, of an earlier version, do not contain it."""
    path = Path(run) / "config.yaml"
    if is_remote(run) or not path.is_file():
        raise InputError(
            f"branch_from={branch_from}: the checkpoint was written by an earlier version and does "
            f"not contain the config of the run, and {path} does not exist. Give the run folder."
        )
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(load_run_config(path), resolve=True)
    return dict(config)
