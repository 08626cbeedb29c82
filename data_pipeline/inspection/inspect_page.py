"""`python -m data_pipeline inspect`: one HTML page about a corpus that opens offline.

What it holds, what cleaning dropped, what a recipe takes of it, and text out of it, so that a
person has looked at the data before a model does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from conf.errors import InputError
from conf.output_kinds import PAGE
from conf.outputs import Output
from data_pipeline.inspection.plan import GOOD_EPOCHS, Plan, plan_of_run, plan_recipe, read_env
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.store.storage import is_remote

TEMPLATE = Path(__file__).parent / "templates" / "inspect.html"


@dataclass
class InspectConfig:
    """data: a folder of shards; or run: a run folder, whose data and recipe are taken. out: the
    page.

    recipe: as `pretrain` takes it; none leaves the plan out. max_epochs: as data.max_epochs there.
    seed: of the order of samples and of the choice of documents; null for that of the run, or 0.
    documents: to show of each source; sequences: to show of each stage.
    overwrite: replaces `out`, if it is a page that Headwater made.
    """

    out: str = MISSING
    data: str | None = None
    run: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    max_epochs: float = GOOD_EPOCHS
    seed: int | None = None
    documents: int = 2
    sequences: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.run):
            raise InputError("give data=<folder of shards> or run=<run folder>, one of them.")
        if self.run and self.recipe:
            raise InputError(f"run={self.run} has a recipe of its own: give data= with recipe=.")
        for key in ("documents", "sequences"):
            if getattr(self, key) < 0:
                raise InputError(f"{key}={getattr(self, key)}, expected 0 or more.")


@dataclass(frozen=True)
class Subject:
    """What the page is about; changed: why the data is not what the run was trained on, or ''."""

    manifest: Manifest
    plan: Plan | None
    seed: int
    changed: str = ""


def inspect(config: InspectConfig) -> None:
    """Writes the page; raises InputError where a file that is named is missing or not its kind."""
    output = Output(config.out, PAGE, config.overwrite, [config.data, config.run])
    output.check()

    from data_pipeline.inspection.content import content
    from pages.page import render

    found = content(subject(config), config.documents, config.sequences)
    output.write(render(TEMPLATE, found))
    print(f"{config.out}: {output.path.stat().st_size / 1024:.0f} kB")


def subject(config: InspectConfig) -> Subject:
    """Loads the corpus and the plan that the config names."""
    if config.run:
        return _of_run(Path(config.run), config)
    manifest = _load(str(config.data))
    seed = config.seed or 0
    plan = None
    if config.recipe:
        plan = plan_recipe(config.recipe, manifest.source_tokens("train"), seed, config.max_epochs)
    return Subject(manifest, plan, seed)


def _of_run(run: Path, config: InspectConfig) -> Subject:
    for name in ("config.yaml", "order.json"):
        if not (run / name).is_file():
            raise InputError(
                f"run={run} has no {name}: expected the folder of a run of python -m pretrain."
            )
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    manifest = _load(settings["data"]["folder"])
    trained_on = read_env(run).get("data_fingerprint", manifest.fingerprint)
    changed = ""
    if trained_on != manifest.fingerprint:
        changed = (
            f"{run} was trained on data with the fingerprint {trained_on[:16]}, but "
            f"{manifest.folder} now has {manifest.fingerprint[:16]}: the plan is that of the run, "
            "all else is of the data as it is now."
        )
    seed = int(settings.get("seed", 0)) if config.seed is None else config.seed
    return Subject(manifest, plan_of_run(run, settings), seed, changed)


def _load(folder: str) -> Manifest:
    if is_remote(folder):
        raise InputError(
            f"{folder} is not on this machine: inspect reads a local folder, as it was made."
        )
    return load_manifest(folder)
