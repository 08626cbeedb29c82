"""The command `python -m pretrain average`, which averages checkpoints of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from conf.chat import ChatTemplate
from conf.errors import InputError, one_of
from conf.model_card import CardConfig
from conf.output_kinds import AVERAGED_RUN, MODEL
from conf.outputs import Output
from conf.parents import describe_members
from data_pipeline.store.corpus import open_corpus
from pretrain.averages.accumulate import Average
from pretrain.averages.checkpoint import write_run_folder
from pretrain.averages.members import AUTO, Member, check_steps, find_members, parse
from pretrain.averages.weighting import check_weights, weights_of
from pretrain.averages.window import HeldOut, choose
from pretrain.config import device_of
from pretrain.export import DTYPES, ModelFolder, chosen_template, write_model_folder
from pretrain.origin import origin_of


@dataclass
class AverageConfig:
    """Configuration of `pretrain average`.

    run: a run folder, or a list of several. `folder@step` names the step of a folder.
    steps: a list of steps with checkpoints, all, latest, or auto for as many of the newest
        checkpoints of one run as have the lowest held-out loss.
    weights: uniform, linear (1, 2, 3, ... from the oldest), ema, sqrt (as a decay of the learning
        rate with the shape sqrt), or a list with one number per checkpoint, of any sum.
    decay: with weights=ema, the weight of a checkpoint relative to that of the next newer one.
    out: the folder to write.
    form: model for a Hugging Face folder; checkpoint for a run folder with one checkpoint, which
        has the optimizer's moments and the position in the data of the newest checkpoint.
    dtype: dtype of the weights with form=model, `bfloat16` or `float32`.
    chat_template, card: same as for `pretrain export`.
    overwrite: whether to replace `out` if Headwater wrote it.
    data: the corpus of the runs, needed for steps=auto if it has moved.
    tokens: with steps=auto, the number of held-out tokens per source.
    device: with steps=auto, where losses are computed: cpu, cuda or auto.
    """

    run: Any = MISSING
    steps: Any = "all"
    weights: Any = "uniform"
    decay: float = 0.9
    out: str = MISSING
    form: str = "model"
    dtype: str = "bfloat16"
    chat_template: ChatTemplate | None = None
    card: CardConfig = field(default_factory=CardConfig)
    overwrite: bool = False
    data: str | None = None
    tokens: int = 65536
    device: str = "auto"

    def __post_init__(self) -> None:
        one_of("form", self.form, ("model", "checkpoint"))
        one_of("dtype", self.dtype, tuple(DTYPES))
        check_steps(self.steps)
        check_weights(self.weights, self.decay)
        several = not isinstance(self.run, str)
        if self.steps == AUTO and (several or not isinstance(self.weights, str)):
            key, value = ("run", self.run) if several else ("weights", self.weights)
            raise InputError(
                f"{key}={value}: steps=auto compares the newest checkpoints of one run, with named "
                "weights. Name one run and such weights, or give steps=[...]."
            )


def average(config: AverageConfig) -> None:
    """Writes the average of checkpoints as a Hugging Face folder or as a checkpoint."""
    runs = [config.run] if isinstance(config.run, str) else list(config.run)
    kind = MODEL if config.form == "model" else AVERAGED_RUN
    folders = [parse(str(run))[0] for run in runs]
    output = Output(config.out, kind, config.overwrite, folders)
    output.check()
    members: Sequence[Member] = find_members(config.run, config.steps, config.data)
    if len(members) < 2:
        raise InputError(
            f"steps={config.steps}: {members[0].name} is the only checkpoint, and an average needs "
            "two or more. Give more steps, or use python -m pretrain export for one step."
        )
    sentence = None
    if config.steps == AUTO:
        members, sentence = _best_window(config, members)
    weights = weights_of(config.weights, len(members), config.decay)
    summed = Average([member.weights for member in members], weights)
    record = describe(config, members, weights, sentence)
    newest = members[-1]
    with output.folder() as folder:
        if config.form == "checkpoint":
            write_run_folder(folder, newest, summed, record)
        else:
            origin = origin_of(Path(newest.run), newest.config.init_from)
            form = ModelFolder(
                config.dtype,
                chosen_template(config.chat_template, origin),
                origin,
                config.card.metadata(origin.card if origin else {}),
            )
            write_model_folder(
                folder, iter(summed), newest.config, newest.network, newest.corpus,
                newest.metadata, form, {"average": _in_words(record)},
            )  # fmt: skip
    print(f"{config.out}: {_in_words(record)}")


def describe(
    config: AverageConfig, members: Sequence[Member], weights: Sequence[float], found: str | None
) -> dict[str, Any]:
    """Returns the record of an average: its weights, and its checkpoints from newest to oldest.

    The record is that of a parent (`conf.parents`): the run and step whose data it continues.
    """
    name = config.weights if isinstance(config.weights, str) else "list"
    listed = [
        {
            "run": str(Path(member.run).absolute()),
            "name": member.config.name,
            "step": member.step,
            "weight": weight,
        }
        for member, weight in reversed(list(zip(members, weights, strict=True)))
    ]
    newest = members[-1]
    record: dict[str, Any] = {
        "kind": "average",
        "run": str(Path(newest.run).absolute()),
        "name": newest.config.name,
        "step": newest.step,
        "tokens": newest.metadata["tokens"],
        "order": newest.metadata["order"],
        "weights": name,
        "members": listed,
    }
    if name == "ema":
        record["decay"] = config.decay
    return record | ({"window": found} if found is not None else {})


def _in_words(record: dict[str, Any]) -> str:
    """Returns a description of an average for its card."""
    members = record["members"]
    decay = f" with decay {record['decay']:g}" if "decay" in record else ""
    window = f"; {record['window']}" if "window" in record else ""
    count = f"{len(members)} checkpoints" if len(members) > 1 else "a single checkpoint"
    return f"{count}, weights {record['weights']}{decay}: {describe_members(members)}{window}"


def _best_window(config: AverageConfig, members: Sequence[Member]) -> tuple[Sequence[Member], str]:
    """Returns the checkpoints whose average has the lowest held-out loss, and by how much."""
    newest = members[-1]
    manifest = open_corpus(config.data or newest.config.data.folder)
    edition = newest.plan.stages[0].edition
    device = device_of(config.device, "cuda" if torch.cuda.is_available() else "cpu")
    held_out = HeldOut(newest, manifest.at_edition(edition), config.tokens, torch.device(device))
    choice = choose(members, partial(_average_of, config), held_out)
    print("checkpoints   held-out loss   on the samples that judge the choice")
    for window in choice.windows:
        print(f"{window.size:>11}   {window.chosen_by:13.4f}   {window.judged_by:.4f}")
    return members[-choice.best.size :], choice.sentence()


def _average_of(config: AverageConfig, members: Sequence[Member]) -> Average:
    weights = weights_of(config.weights, len(members), config.decay)
    return Average([member.weights for member in members], weights)
