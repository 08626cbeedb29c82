"""Loads the subject of the page: a corpus, and the plan of a recipe or a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf.errors import InputError
from data_pipeline.inspection.config import InspectConfig
from data_pipeline.inspection.plan import RecipePlan, plan_of_run, plan_recipe, read_env
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.store.storage import is_remote


@dataclass(frozen=True)
class Subject:
    """The corpus and the plan that a page shows.

    `changed` is a warning if the data has changed since the run, else empty.
    """

    manifest: Manifest
    plan: RecipePlan | None
    seed: int
    changed: str = ""


def load_subject(config: InspectConfig) -> Subject:
    """Returns the corpus and the plan that the config names."""
    if config.run:
        return _load_run(Path(config.run), config)
    manifest = _load_corpus(str(config.data))
    seed = config.seed or 0
    plan = None
    if config.recipe:
        sizes = manifest.edition_tokens("train")
        plan = plan_recipe(config.recipe, sizes, seed, config.max_epochs)
    return Subject(manifest, plan, seed)


def _load_run(run: Path, config: InspectConfig) -> Subject:
    for name in ("config.yaml", "order.json"):
        if not (run / name).is_file():
            raise InputError(f"run={run}: {name} is missing. Give a run folder of pretrain.")
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    manifest = _load_corpus(settings["data"]["folder"])
    env = {"data_fingerprint": manifest.fingerprint} | read_env(run)
    edition, trained_on, changed = manifest.of_run(env), env["data_fingerprint"], ""
    if edition is not None:
        manifest = edition
    else:
        changed = (
            f"{run} was trained on data with the fingerprint {trained_on[:16]}, but "
            f"{manifest.folder} now has the fingerprint {manifest.fingerprint[:16]}. The plan is "
            "that of the run, and everything else describes the current data."
        )
    seed = int(settings.get("seed", 0)) if config.seed is None else config.seed
    return Subject(manifest, plan_of_run(run, settings), seed, changed)


def _load_corpus(folder: str) -> Manifest:
    if is_remote(folder):
        raise InputError(f"{folder} is remote. Copy the corpus to this machine, and give its path.")
    return load_manifest(folder)
