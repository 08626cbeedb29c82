"""Runs a study: plans its runs, starts those that are missing, and writes what they found."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from conf.errors import EXIT_REQUEUE, InputError, RunAborted
from conf.renamed import load_run_config
from launch.studies.base_command import BaseCommand
from launch.studies.commands import RunCommand, commands_of
from launch.studies.costs import Cost, Costs, total
from launch.studies.fits.speed import Duration, Speed, speed_of
from launch.studies.kind import RunResult, StudyKind
from launch.studies.record import Records, is_final
from launch.studies.results import is_finished, result_of, used_seconds
from launch.training import outcome
from pretrain.health.changes import settings as dotted

STOP = "STOP"
"""File in the folder of a study, or of a run, that stops it."""
COMPARED = ("model", "recipe", "optim", "objective", "ema", "seed", "precision", "init_from")
COMPARED_KEYS = ("branch_from", "data.folder", "validation.tokens")
"""Groups and keys on which the result of a run depends."""
OPEN = (None, "auto", "latest")
"""Values that the run itself replaces when it starts."""


class Starter(Protocol):
    """A place where runs are started: this machine, or a SLURM cluster."""

    def active(self, names: list[str]) -> set[str]:
        """Returns the names of the runs that are waiting or running."""

    def start(self, command: RunCommand) -> str:
        """Starts a run, and returns where to look."""

    def wait(self) -> dict[str, tuple[int, str]]:
        """Waits a little; returns exit codes and causes of the runs that have ended."""

    def stop(self) -> None:
        """Stops the runs, or leaves them, as the place requires."""


class Study:
    """A study in its folder.

    Args:
        kind: The question.
        base: The command that the runs share.
        costs: Plans the cost of runs.
    """

    def __init__(self, kind: StudyKind, base: BaseCommand, costs: Costs) -> None:
        self.kind = kind
        self.base = base
        self.costs = costs
        self.folder = base.out
        self.records = Records(self.folder)
        self.commands: dict[str, RunCommand] = {}
        self._results: dict[str, RunResult] = {}

    def look(self) -> None:
        """Reads the results so far, and the runs that follow from them.

        Raises:
            InputError: a run is impossible, its folder holds a run with other settings, or the
                study costs more than its budget.
        """
        used: list[RunResult] = []
        while True:
            self.commands = commands_of(self.base, self.kind.runs(self.base, used))
            for name, command in self.commands.items():
                check_settings(name, command)
                if not self.is_done(name):
                    found = result_of(self.base, self.commands, name)
                    if found is not None:
                        self._results[name] = found
            if self.missing or len(self.results) == len(used):
                break
            used = self.results  # all of these runs have ended, so others may follow from them
        self.check_budget()

    @property
    def results(self) -> list[RunResult]:
        """The results of the runs that have finished, in the order of the runs."""
        return [self._results[name] for name in self.commands if name in self._results]

    def is_done(self, name: str) -> bool:
        """Returns True if the result of a run is known."""
        return name in self._results

    @property
    def missing(self) -> list[str]:
        """The runs that have neither finished nor failed."""
        return [
            n for n in self.commands if not self.is_done(n) and not self.records.of(n).has_failed
        ]

    @property
    def failed(self) -> list[str]:
        """The runs that have failed for good."""
        return [n for n in self.commands if not self.is_done(n) and self.records.of(n).has_failed]

    def planned(self) -> dict[str, Cost]:
        """Returns the planned cost of each run, at the speed that finished runs had, if any."""
        speed = self.speed
        return {name: self.costs.at(speed, command) for name, command in self.commands.items()}

    @property
    def speed(self) -> Speed:
        """The speed of the runs that have finished."""
        finished = ((self.commands[r.run.name], r.run.name) for r in self.results)
        return speed_of(
            [
                Duration(
                    command.own_steps,
                    self.costs.seconds(command),
                    used_seconds(self.base.run_dir(name)),
                )
                for command, name in finished
            ]
        )

    def later(self) -> Cost:
        """Returns the planned cost of runs that will depend on results and are not known yet."""
        runs = [run for run in self.kind.later(self.base) if run.name not in self.commands]
        found, speed = commands_of(self.base, runs).values(), self.speed
        return total(self.costs.at(speed, command) for command in found)

    def check_budget(self) -> None:
        """Raises InputError if the study costs more than its budget."""
        whole = total(self.planned().values()) + self.later()
        for key, limit, cost, unit in (
            ("budget_hours", self.kind.budget_hours, whole.seconds / 3600, "hours"),
            ("budget_flops", self.kind.budget_flops, whole.flops, "FLOPs"),
        ):
            if limit is not None and cost > limit:
                number = f"{cost:.3g}"
                raise InputError(
                    f"study.{key}={limit:g}: the {len(self.commands)} runs of the study need about "
                    f"{number} {unit}. Raise the budget, or give fewer or smaller runs."
                )

    def run(self, starter: Starter, jobs: int, wait: bool) -> None:
        """Starts the missing runs, at most `jobs` at a time, until all have ended.

        Raises:
            RunAborted: the study was asked to stop; the same command continues it.
        """
        self.look()
        known: set[str] = set()
        while known != set(self.commands):
            known = set(self.commands)
            self._finish_round(starter, jobs, wait)
            self.look()

    def _finish_round(self, starter: Starter, jobs: int, wait: bool) -> None:
        for name in self.missing:
            ended = outcome(self.base.run_dir(name))
            if ended is not None and is_final(ended["code"]):  # while no study looked
                self.records.ended(name, self.base.run_dir(name), ended["code"], "")
        while self.missing:
            active, started = starter.active(self.missing), False
            for name in self.missing:
                if len(active) >= jobs or (self.folder / STOP).exists():
                    break
                if name in active or not self._is_ready(name):
                    continue
                if is_finished(self.base.run_dir(name)):  # since its result was last read
                    self._end(name, 0, "")
                else:
                    print(f"{self._count()} {name}: {self._start(starter, name)}", flush=True)
                    active, started = starter.active(self.missing), True
            if not (active or started) or not wait:
                break
            for name, (code, cause) in starter.wait().items():
                self._end(name, code, cause)
        if self.missing:
            raise RunAborted(self._left(), EXIT_REQUEUE)

    def _start(self, starter: Starter, name: str) -> str:
        try:
            return f"started, {starter.start(self.commands[name])}"
        except InputError as error:
            self.records.fail(name, error.exit_code, str(error))
            return f"refused: {error}"

    def _end(self, name: str, code: int, cause: str) -> None:
        """Takes note of the end of a run."""
        run_dir = self.base.run_dir(name)
        found = result_of(self.base, self.commands, name)
        if found is not None:
            self._results[name] = found
            print(f"{self._count()} {name}: finished, loss {found.loss:.4f}", flush=True)
        elif is_finished(run_dir):
            self.records.fail(name, code, "the run measured no held-out loss.")
        else:
            self.records.ended(name, run_dir, code, cause)
        record = self.records.of(name)
        if found is None:
            why = (
                f"failed with code {record.code}: {record.cause}"
                if record.has_failed
                else "ended early"
            )
            print(f"{self._count()} {name}: {why}", flush=True)

    def _is_ready(self, name: str) -> bool:
        """Returns True if a run can start: of a branch, if the trunk's checkpoint exists."""
        command = self.commands[name]
        trunk = command.run.trunk
        if trunk is None:
            return True
        saved = self.base.run_dir(trunk) / "checkpoints" / f"step_{command.fork}" / "manifest.json"
        if saved.is_file() or self.base.run_dir(name).joinpath("trunk.json").is_file():
            return True
        if trunk in self.failed:
            self.records.fail(name, self.records.of(trunk).code or 0, f"its trunk {trunk} failed.")
        elif self.is_done(trunk):
            self.records.fail(
                name,
                InputError.exit_code,
                f"its trunk {trunk} has finished without a checkpoint of step {command.fork}. Give "
                "the trunk another name, so that it is trained again.",
            )
        return False

    def _count(self) -> str:
        return f"[{len(self.results)}/{len(self.commands)}]"

    def _left(self) -> str:
        return (
            f"{self.folder}: {len(self.missing)} of {len(self.commands)} runs have not ended. The "
            "same command continues the study."
        )


def check_settings(name: str, command: RunCommand) -> None:
    """Raises InputError if the folder of a run holds a run with other settings."""
    path = Path(command.settings.run_dir) / "config.yaml"
    if not path.is_file():
        return
    from omegaconf import OmegaConf

    before = dotted(load_run_config(path))
    now = dotted(OmegaConf.structured(command.settings))
    different = [
        f"{key} was {before[key]}, now {now[key]}"
        for key in now
        if _is_compared(key) and key in before and not _is_same(before[key], now[key])
    ]
    if different:
        raise InputError(
            f"out: run {name} was made with other settings ({', '.join(different[:3])}). Give the "
            f"study another out, or remove {path.parent}."
        )


def _is_compared(key: str) -> bool:
    return key.partition(".")[0] in COMPARED or key in COMPARED_KEYS


def _is_same(before: Any, now: Any) -> bool:
    return before == now or now in OPEN or str(before) == str(now)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Yields the descriptor of the lock of a study's folder.

    Runs on this machine hold it open too. If the process of the study was killed, this waits until
    they have ended.

    Raises:
        InputError: another process runs the study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = json.loads(os.pread(file, 4096, 0) or b"{}")
            if _is_alive(int(holder.get("pid", 0))):
                raise InputError(
                    f"out={folder}: process {holder['pid']} runs this study. Wait for its end, or "
                    "stop it."
                ) from None
            print("Runs that were started earlier are still ending.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid()}).encode(), 0)
        yield file
    finally:
        os.close(file)


def _is_alive(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").is_dir()
