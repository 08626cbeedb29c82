"""Hooks, which run everything that happens around a training step, with one file per feature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.network import Decoder
from pretrain.checkpoints.read import load_tensors
from pretrain.config import PretrainConfig
from pretrain.parallel.mesh import Layout
from pretrain.processes import Processes
from pretrain.step_numbers import Lap, StepNumbers


@dataclass
class PendingStep:
    """A step whose numbers are still on the device.

    record: values that the host knows without waiting for the device.
    numbers: the values that the device computes.
    lap: the time of the step, which is known once `numbers` are read.
    """

    record: dict[str, Any]
    numbers: StepNumbers
    lap: Lap


class TrainerView(Protocol):
    """The part of the trainer that hooks use.

    checkpoints: the folder of checkpoints.
    dp_rank: data-parallel rank of this process.
    dp_size: number of data-parallel ranks.
    hooks: all hooks, in the order in which they are called.
    at_fork: whether the run is a branch that starts from the checkpoint of its trunk.
    step: number of steps done, out of `plan.total_steps`.
    stopping: reason to end the run after this step, or None; a hook sets it on all ranks at once.
    must_save: whether a checkpoint is due after this step; a hook sets it on all ranks at once.
    data_wait_seconds: time that the last step waited for its data.
    pending: the last step while its record is unpublished, else None.
    """

    config: PretrainConfig
    processes: Processes
    manifest: Manifest
    plan: StagePlan
    layout: Layout
    model: Decoder
    optimizer: torch.optim.Optimizer
    checkpoints: Path
    dp_rank: int
    dp_size: int
    hooks: list[Hook]
    at_fork: bool
    step: int
    stopping: str | None
    must_save: bool
    data_wait_seconds: float
    pending: PendingStep | None

    def publish(self, record: dict[str, Any]) -> None:
        """Sends a record about the steps done so far to all hooks."""

    def flush(self) -> None:
        """Publishes the pending step."""

    def train_step(self) -> PendingStep:
        """Runs one optimizer step and returns its numbers. `step` does not change."""
        ...

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns the metadata that a checkpoint stores in its manifest."""
        ...

    def rewind(self, checkpoint: Path, metadata: Mapping[str, Any]) -> None:
        """Loads the weights, optimizer states and hook states of an earlier checkpoint.

        The step and the position in the data do not change.
        """

    def describe(self) -> str:
        """Returns a description of the run: model, tokens, layout and peak FLOP/s."""
        ...


class Order(IntEnum):
    """Position of a hook within a step. Hooks of equal order are called in the order listed.

    The text below each value says what the hooks in that position do.
    """

    TIME = 0
    """Measures the time of everything that follows."""
    RECORD = 1
    """Writes records, before a checkpoint of the same step is saved."""
    CONTROL = 2
    """May stop the run or rewind it."""
    SETTINGS = 3
    """Applies a stage's settings to the model, before any hook runs the model."""
    VERIFY = 4
    """Compares ranks and weights, before weights are saved."""
    EVALUATE = 5
    """Measures the model, before a checkpoint that may be kept for its low loss."""
    SAVE = 6
    """Writes checkpoints."""
    LAST = 7
    """Does not depend on any other hook."""


class Hook:
    """Base class of hooks, whose methods the trainer calls around each step; all are optional.

    A hook runs on each rank whose list of hooks contains it. A hook that uses collectives must be
    on all ranks.
    """

    order: ClassVar[Order] = Order.LAST

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this hook that a checkpoint stores, as JSON values.

        Only the state of rank 0 is stored, and all ranks restore it.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a stored state, on a rewind and before `on_start` of a resumed run."""

    def tensors(self) -> dict[str, Any]:
        """Returns tensors that a checkpoint stores, in nested dictionaries; DTensors are resharded.

        A checkpoint is loaded into these tensors. All ranks must have the hook.
        """
        return {}

    def reset_tensors(self) -> None:
        """Initializes the tensors if the checkpoint that a run continues from has none."""

    def on_start(self, trainer: TrainerView) -> None:
        """Runs before the first step of this process, once all state is loaded."""

    def before_step(self, trainer: TrainerView) -> None:
        """Runs right before each step."""

    def before_optimizer_step(self, trainer: TrainerView) -> None:
        """Runs between the backward pass and the update, once gradients are scaled and clipped.

        The method must not wait for the device. It runs twice in a step that is replayed.
        """

    def after_step(self, trainer: TrainerView) -> None:
        """Runs after each step; `trainer.step` counts the steps done."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Receives a line of metrics, whose `kind` is train, validation, eval or event.

        Train records arrive one step late, so that reading them never waits for the device.
        """

    def before_rewind(self, trainer: TrainerView) -> None:
        """Runs before a rewind loads the weights and optimizer states of an earlier checkpoint."""

    def on_end(self, trainer: TrainerView) -> None:
        """Runs after the last step of this process."""

    def on_leave(self, trainer: TrainerView) -> None:
        """Runs when the process ends, even after an error. It must return within seconds."""


def in_order(hooks: Iterable[Hook]) -> list[Hook]:
    """Returns the hooks in the order in which they are called."""
    return sorted(hooks, key=lambda hook: hook.order)


def hook_states(hooks: Iterable[Hook]) -> dict[str, dict[str, Any]]:
    """Returns the state of each hook that has one, by class name."""
    return {type(hook).__name__: state for hook in hooks if (state := hook.state_dict())}


def hook_tensors(hooks: Iterable[Hook]) -> dict[str, Any]:
    """Returns the tensors of each hook that has some, by class name, as a checkpoint stores them.

    The result is empty if no hook has any.
    """
    found = {type(hook).__name__: tensors for hook in hooks if (tensors := hook.tensors())}
    return {"hooks": found} if found else {}


def load_hook_states(
    hooks: Iterable[Hook], metadata: Mapping[str, Any], checkpoint: Path | None
) -> None:
    """Restores the states in a checkpoint's metadata, and the tensors in its files.

    checkpoint: None at step 0. All ranks must call this function.
    """
    states = metadata.get("hooks", {})
    for hook in hooks:
        name = type(hook).__name__
        if name in states:
            hook.load_state_dict(states[name])
        tensors = hook.tensors() if checkpoint is not None else {}
        if checkpoint is not None and tensors:
            found = load_tensors(checkpoint, f"hooks.{name}.", {"hooks": {name: tensors}})
            if not found:
                hook.reset_tensors()
