"""The checkpoints of an average, and what they must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from pretrain.checkpoints import files
from pretrain.checkpoints.files import CheckpointError
from pretrain.checkpoints.read import Tensors
from pretrain.config import PretrainConfig
from pretrain.export import corpus_of, read_run_config
from pretrain.stage_network import network_of_checkpoint

ALL, LATEST, AUTO = "all", "latest", "auto"
NOT_COMPARED = ("name", "init", "initializer_range")
"""Fields of a network's config that do not change what its weights compute."""


@dataclass(frozen=True)
class Member:
    """A checkpoint of a run.

    run: the run folder as it was given.
    path: folder of the checkpoint.
    metadata: content of its manifest.
    config: config of the run.
    corpus: manifest of the run's corpus.
    """

    run: str
    path: Path
    metadata: dict[str, Any]
    config: PretrainConfig
    corpus: Manifest

    @property
    def step(self) -> int:
        """Returns the number of steps done."""
        return int(self.metadata["step"])

    @property
    def name(self) -> str:
        """Returns the name of the checkpoint, such as `runs/trunk@1000`."""
        return f"{self.run}@{self.step}"

    @cached_property
    def weights(self) -> Tensors:
        """The weights, which are read one tensor at a time."""
        return Tensors(self.path)

    @cached_property
    def plan(self) -> StagePlan:
        """The stages of the run."""
        return StagePlan(self.config.recipe, self.corpus.edition_tokens("train"))

    @cached_property
    def network(self) -> ModelConfig:
        """The network of the checkpoint, with what its stage changed."""
        return network_of_checkpoint(self.metadata, self.config.model, self.plan)


def find_members(runs: Any, steps: Any, data: str | None) -> list[Member]:
    """Returns the checkpoints of some runs at some steps, which may all be averaged.

    The checkpoints of a run are in ascending order, and the runs in the given order.

    Args:
        runs: A run folder or a list of them. `folder@step` names the step of a folder.
        steps: A list of steps, or all, auto (all too) or latest, for folders without a step.
        data: The corpus, for runs without a copy of their tokenizer.

    Raises:
        InputError: a step has no checkpoint, or two checkpoints cannot be averaged.
    """
    found = []
    for one in [runs] if isinstance(runs, str) else runs:
        folder, step = parse(str(one))
        config = read_run_config(Path(folder))
        corpus = corpus_of(Path(folder), data or config.data.folder, data is not None)
        for path in _paths(folder, steps if step is None else [step]):
            problem = files.verify(path)
            if problem is not None:
                raise CheckpointError(problem)
            found.append(Member(folder, path, files.read_manifest(path), config, corpus))
    names = [member.name for member in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"run={runs}: {twice} is named twice. Name each checkpoint once.")
    for member in found[1:]:
        check_same(found[0], member)
    return found


def parse(run: str) -> tuple[str, int | None]:
    """Returns the folder and the step in `folder@step`; the step is None for a folder alone."""
    folder, _, step = run.rpartition("@")
    return (folder, int(step)) if folder and step.isdigit() else (run, None)


def check_steps(steps: Any) -> None:
    """Raises InputError if `steps` is neither a list of steps nor all, latest or auto."""
    listed = not isinstance(steps, str) and isinstance(steps, Sequence)
    if listed and steps and all(type(step) is int and step > 0 for step in steps):
        return
    if steps not in (ALL, LATEST, AUTO):
        raise InputError(
            f"steps={steps}: expected a list of steps such as steps=[1000,2000], or {ALL}, "
            f"{LATEST} or {AUTO}."
        )


def check_same(first: Member, other: Member) -> None:
    """Raises InputError if two checkpoints have another tokenizer, network or shape."""
    ours, theirs = (member.corpus.tokenizer["sha256"] for member in (first, other))
    if ours != theirs:
        raise InputError(
            f"run={other.run}: its tokenizer ({theirs[:16]}) is not that of {first.run} "
            f"({ours[:16]}), so their weights cannot be averaged. Average runs with one tokenizer."
        )
    before, now = (asdict(member.network) for member in (first, other))
    for key in before:
        if key not in NOT_COMPARED and before[key] != now[key]:
            raise InputError(
                f"model.{key}: {other.name} has {now[key]}, and {first.name} has {before[key]}, so "
                "their weights cannot be averaged. Average checkpoints of one network."
            )
    shapes, others = first.weights.shapes, other.weights.shapes
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            sizes = [list(found[name]) if name in found else "none" for found in (others, shapes)]
            raise InputError(
                f"{name}: the shape in {other.name} is {sizes[0]}, and in {first.name} {sizes[1]}. "
                "Average checkpoints of one network."
            )


def _paths(run: str, steps: Any) -> list[Path]:
    """Returns the checkpoints of a run at some steps, oldest first."""
    folder = Path(run) / "checkpoints"
    there = {files.step_of(path.name): path for path in reversed(files.checkpoints_in(folder))}
    if not there:
        raise InputError(f"run={run}: the run has no checkpoint. Train it first.")
    if isinstance(steps, str):
        return list(there.values())[-1 if steps == LATEST else 0 :]
    for step in steps:
        if step not in there:
            raise InputError(
                f"steps={list(steps)}: {run} has no checkpoint of step {step}. Give steps that "
                f"have one: {', '.join(map(str, there))}."
            )
    return [there[step] for step in sorted(steps)]
