"""Reads what the runs of a study have measured, from their run folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.studies.base_command import BaseCommand, non_embedding
from launch.studies.commands import RunCommand
from launch.studies.kind import RunResult, SourceLoss
from launch.training import outcome
from model.flops import flops_per_token, parameters
from pretrain.health.outcome import FINISHED

Record = dict[str, Any]
STARTS = ("start", "branch", "resume")
"""Events of a process that starts; the time before it was not used by the run."""


def read_records(run_dir: Path) -> list[Record]:
    """Returns the records of metrics.jsonl without an incomplete last line, or []."""
    try:
        text = (run_dir / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line]


def is_finished(run_dir: Path) -> bool:
    """Returns True if a run has completed the last step of its recipe and saved it."""
    ended = outcome(run_dir)
    return ended is not None and ended["code"] == 0 and ended["cause"] == FINISHED


def used_seconds(run_dir: Path) -> float:
    """Returns the time that a run took, with its validations and saves but without pauses."""
    records = [record for record in read_records(run_dir) if "time" in record]
    return sum(
        after["time"] - before["time"]
        for before, after in pairwise(records)
        if not (after["kind"] == "event" and after["event"] in STARTS)
    )


def curve_of(
    base: BaseCommand, commands: dict[str, RunCommand], name: str
) -> list[tuple[int, float]]:
    """Returns tokens and held-out loss of each validation, of a branch also before the fork."""
    command = commands[name]
    own = [
        (record["tokens"], record["loss"])
        for record in read_records(base.run_dir(name))
        if record["kind"] == "validation"
    ]
    if command.run.trunk is None:
        return own
    fork = command.plan.tokens_at(command.fork)
    before = curve_of(base, commands, command.run.trunk)
    return [point for point in before if point[0] < fork] + [p for p in own if p[0] >= fork]


def result_of(base: BaseCommand, commands: dict[str, RunCommand], name: str) -> RunResult | None:
    """Returns the result of a run, or None if it has not finished."""
    command, records = commands[name], read_records(base.run_dir(name))
    validations = list(_of_kind(records, "validation"))
    if not validations or not is_finished(base.run_dir(name)):
        return None
    model, last = command.settings.model, validations[-1]
    scored = list(_of_kind(records, "eval"))
    return RunResult(
        run=command.run,
        parameters=parameters(model),
        non_embedding=non_embedding(model),
        tokens=command.plan.total_tokens,
        flops=sum(s.tokens * flops_per_token(model, s.seq_len) for s in command.plan.stages),
        seconds=sum(record["step_seconds"] for record in _of_kind(records, "train")),
        loss=last["loss"],
        sources={
            source: SourceLoss(found["loss"], found.get("bits_per_byte"))
            for source, found in last["sources"].items()
        },
        tasks=scored[-1]["tasks"] if scored else {},
        curve=tuple(curve_of(base, commands, name)),
    )


def _of_kind(records: Iterable[Record], kind: str) -> Iterator[Record]:
    return (record for record in records if record["kind"] == kind)
