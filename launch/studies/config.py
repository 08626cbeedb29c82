"""Configuration of `python -m launch study`, and the reader of a study's file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.entry import CONF_DIR, sentence
from conf.errors import InputError, did_you_mean, one_of
from launch.plan.cluster import FILE_ENDINGS, ClusterConfig, read_cluster_file
from launch.slurm.settings import check_time
from launch.studies.kind import StudyKind

OF_FILE = "of_file"
"""Choice of the config group `study` that stands for the content of a file."""
HERE, SLURM = "here", "slurm"


@dataclass
class StudyConfig:
    """A study: runs that answer a question together, and a page with the answer.

    The overrides of `python -m pretrain` that all runs share follow `--` (its --help shows them).
    The same command continues a study that was interrupted, and starts only the runs that are
    missing.

    study: a file in `conf/study`, or the path of a YAML file with the same keys.
    out: folder of the study.
    plan: whether the command only prints what the study costs.
    on: here, or slurm for one job per run.
    max_jobs: number of runs at the same time; null for 1 here and 8 on SLURM.
    nproc: processes per run (and node); null for one per GPU.
    cluster: the name of a file in `conf/cluster`, or the path of any file; times are planned for
        its hardware, and jobs have its settings.
    nodes, time, partition: nodes, time limit and partition of each job on SLURM.
    node_check: whether each job compares and times its nodes before the first step.
    wait: whether the command waits for the jobs on SLURM; without it, a later call continues.
    retry: whether runs that have failed start again.
    """

    study: dict[str, Any] = field(default_factory=dict)
    out: str = MISSING
    plan: bool = False
    on: str = HERE
    max_jobs: int | None = None
    nproc: int | None = None
    cluster: str = "laptop"
    nodes: int = 1
    time: str | None = None
    partition: str | None = None
    node_check: bool = True
    wait: bool = True
    retry: bool = False

    def __post_init__(self) -> None:
        one_of("on", self.on, (HERE, SLURM))
        for key in ("max_jobs", "nproc", "nodes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"{key}={value}: expected 1 or more.")
        check_time("time", self.time)
        if self.on == HERE and (self.nodes > 1 or not self.wait):
            wrong = f"nodes={self.nodes}" if self.nodes > 1 else "wait=false"
            raise InputError(
                f"{wrong}: runs on this machine only. Add on=slurm, or remove the key."
            )

    @property
    def jobs(self) -> int:
        """Returns the number of runs at the same time."""
        return self.max_jobs or (1 if self.on == HERE else 8)


def take_file(arguments: list[str]) -> list[str]:
    """Returns the arguments with `study=my.yaml` replaced by a choice with the file's content.

    Raises:
        InputError: the file is missing, or not a mapping.
    """
    from hydra.core.config_store import ConfigStore

    found = []
    for argument in arguments:
        key, _, given = argument.partition("=")
        if key == "study" and given.endswith(FILE_ENDINGS):
            ConfigStore.instance().store(group="study", name=OF_FILE, node=read_study(Path(given)))
            argument = f"study={OF_FILE}"
        found.append(argument)
    return found


def read_study(path: Path) -> dict[str, Any]:
    """Returns the keys of a study's file, completed by those of its kind in `conf/study`."""
    if not path.is_file():
        raise InputError(f"study={path}: the file does not exist. Give the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"study={path}: not valid YAML ({reason}). Correct the file.") from None
    if not isinstance(content, dict) or "kind" not in content:
        raise InputError(
            f"study={path}: the file has no line `kind: ...`. Give one of {', '.join(kinds())}."
        )
    defaults = CONF_DIR / "study" / f"{content['kind']}.yaml"
    known = yaml.safe_load(defaults.read_text()) if defaults.is_file() else {}
    return dict(known) | content


def kinds() -> list[str]:
    """Returns the names of all kinds."""
    folder = Path(__file__).parent / "kinds"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def kind_of(settings: dict[str, Any]) -> StudyKind:
    """Returns the study with the given keys.

    Raises:
        InputError: the kind or a key is unknown, or a value is refused.
    """
    name = str(settings.get("kind", ""))
    if name not in kinds():
        raise InputError(f"study.kind={name}: unknown kind{did_you_mean(name, kinds())}.")
    schema = importlib.import_module(f"launch.studies.kinds.{name}").Study
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
        study: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"study: {sentence(error, schema)}") from None
    assert isinstance(study, StudyKind)
    return study


def cluster_of(given: str, nodes: int, nproc: int) -> ClusterConfig:
    """Returns the hardware of a run: that of a cluster's file, with its nodes and processes."""
    keys = read_cluster_file(given) | {"nodes": nodes, "gpus_per_node": nproc}
    cluster: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClusterConfig), keys))
    assert isinstance(cluster, ClusterConfig)
    return cluster
