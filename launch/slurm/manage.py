"""`python -m launch status` shows runs and their jobs; `python -m launch stop` ends a run."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from conf.errors import InputError
from conf.text import format_duration
from launch.sky import jobs as sky_jobs
from launch.slurm.preparations import preparations, preparations_table
from launch.slurm.submit import Job, active_jobs
from launch.studies.status import is_study, stop_study, study_lines
from launch.training import outcome

CONFIGS = ("slurm/config.yaml", "sky/config.yaml")
"""Configs of runs that were submitted as jobs, in the run folder."""
RECENT_STEPS = 20
"""Number of last steps from which tokens/s and the time left are computed."""


@dataclass
class StatusConfig:
    """Configuration of `status`, which reads run folders, and queries SLURM if it is installed.

    The command changes nothing.

    runs: a folder of runs or of studies, or one run or study.
    data: a folder of corpora whose unfinished preparations are shown, or one corpus.
    """

    runs: str = "runs"
    data: str = "data"


@dataclass
class StopConfig:
    """Configuration of `stop`, which writes a file `STOP` into the run folder.

    The run then saves a checkpoint and ends, and does not start again until the file is removed.
    Pending jobs are cancelled, and so is a running step of a chain that is not a training run.

    run: the run folder, or the folder of a study, all of whose runs are stopped.
    now: cancels the job at once, without a checkpoint.
    """

    run: str = MISSING
    now: bool = False


@dataclass(frozen=True)
class RunStatus:
    """The status of a run, from its folder and SLURM."""

    run_dir: Path
    state: str
    jobs: str
    step: int
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    restarts: int
    log: Path


def status(config: StatusConfig) -> None:
    """Prints one line per unfinished preparation, and one per run, with branches below trunks."""
    folder = Path(config.runs)
    found = sorted(p.parent for p in folder.rglob("metrics.jsonl")) if folder.is_dir() else []
    queued = sorted(p.parent.parent for p in folder.rglob("s*/jobs.jsonl"))
    runs = sorted({*found, *queued})
    unfinished = preparations(Path(config.data))
    if not runs and not unfinished:
        raise InputError(
            f"runs={folder}: no runs were found. Give a run folder, or a folder of runs. "
            f"data={config.data} has no unfinished preparation either."
        )
    # A pipe has no width. There, each line stays on one line.
    console = Console(width=None if Console().is_terminal else 250, highlight=False)
    if unfinished:
        console.print(preparations_table(unfinished))
    if not runs:
        return
    if unfinished:
        console.print()
    for line in study_lines(folder):
        console.print(line)
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "jobs", "step", "loss", "tokens/s", "ETA", "restarts", "log"):
        right = title in ("step", "loss", "tokens/s", "ETA", "restarts")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for run_dir, depth in as_tree(runs):
        run = read_status(run_dir)
        table.add_row(
            f"{'  ' * (depth - 1)}{'└ ' * (depth > 0)}{run.run_dir}",
            run.state,
            run.jobs,
            f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
            "" if run.loss is None else f"{run.loss:.3f}",
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            "" if run.eta_seconds is None else format_duration(run.eta_seconds),
            str(run.restarts),
            str(run.log),
        )
    console.print(table)


def as_tree(runs: list[Path]) -> list[tuple[Path, int]]:
    """Returns runs with the number of parents listed above them, each branch below its trunk."""
    known = {run.resolve(): run for run in runs}
    children: dict[Path | None, list[Path]] = {}
    for run in runs:
        parent = parent_of(run)
        children.setdefault(known.get(parent) if parent else None, []).append(run)

    def below(parent: Path | None, depth: int) -> list[tuple[Path, int]]:
        return [
            one
            for run in children.get(parent, [])
            for one in ((run, depth), *below(run, depth + 1))
        ]

    return below(None, 0)


def parent_of(run_dir: Path) -> Path | None:
    """Returns the run folder that a run is a branch of, or None."""
    try:
        parents = json.loads((run_dir / "env.json").read_text()).get("parents", [])
    except (OSError, ValueError):
        parents = []
    if parents:
        return Path(parents[0]["run"]).resolve()
    queued = next(
        (path for path in map(run_dir.joinpath, CONFIGS) if path.is_file()), run_dir / CONFIGS[0]
    )
    stated = (
        re.search(r"^branch_from: (.+)@\d+$", queued.read_text(), re.M)
        if queued.is_file()
        else None
    )
    return Path(stated[1]).resolve() if stated else None


def read_status(run_dir: Path) -> RunStatus:
    """Returns the status of a run from its folder and SLURM."""
    records = _records(run_dir / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    starts = [r for r in records if r.get("event") in ("start", "branch", "resume")]
    last = steps[-1] if steps else None
    rate = None
    if last:
        rate = sum(r["batch_tokens"] for r in steps) / sum(r["step_seconds"] for r in steps)
    total_tokens, total_steps = _plan(run_dir)
    active = active_jobs(run_dir) or sky_jobs.active_jobs(run_dir)
    state = _state(run_dir, active, last)
    left = total_tokens - last["tokens"] if last and total_tokens else None
    logs = sorted((run_dir / "logs").glob("*/attempt_*/0/stderr.log"), key=_modified)
    log = run_dir / "slurm" / "job.log"
    return RunStatus(
        run_dir,
        state,
        ", ".join(job.number for job in active),
        last["step"] if last else sky_jobs.copied_step(run_dir) or 0,
        total_steps,
        last["loss"] if last else None,
        rate,
        left / rate if rate and left and state in ("running", "unknown") else None,
        max(0, len(starts) - 1),
        log if log.exists() or not logs else logs[-1],
    )


def _state(run_dir: Path, active: list[Job], last: dict[str, Any] | None) -> str:
    """Returns the state of a run; for a chain, that of its running or else first pending step."""
    if active:
        job = next((job for job in active if job.state == "RUNNING"), active[0])
        step = "" if job.script == "job" else f"{job.script} "
        return step + job.state.lower()
    ended = outcome(run_dir)
    if ended is not None:
        return str(ended["cause"]) if ended["code"] == 0 else f"ended with code {ended['code']}"
    if last and time.time() - last["time"] < max(60.0, 5 * last["step_seconds"]):
        return "running"
    return "waiting" if last is None else "not responding"


def _plan(run_dir: Path) -> tuple[int | None, int | None]:
    """Returns the planned tokens and steps of the whole run, or None for both without a config."""
    from omegaconf import OmegaConf

    from data_pipeline.sampling.recipe import plan_from_mapping

    for path in (run_dir / "config.yaml", *map(run_dir.joinpath, CONFIGS)):
        if path.exists():
            config: Any = OmegaConf.to_container(OmegaConf.load(path))
            recipe = config["recipe"]
            # The number of tokens of a source does not change the batches.
            mixtures = [stage.get("mixture") or {} for stage in recipe["stages"].values()]
            sources = {name: 1 for mixture in mixtures for name in mixture} or {"": 1}
            plan = plan_from_mapping(recipe, sources)
            return plan.total_tokens, plan.total_steps
    return None, None


def stop(config: StopConfig) -> None:
    """Requests a checkpoint and a permanent stop from a run, or cancels its jobs at once."""
    run_dir = Path(config.run)
    if not run_dir.is_dir():
        raise InputError(f"run={run_dir}: no such folder. Give a run folder.")
    if is_study(run_dir):
        stop_study(run_dir, config.now)
        return
    active = active_jobs(run_dir)
    rented = sky_jobs.active_jobs(run_dir)
    if rented:
        stop_rented(config, rented)
        return
    if config.now and not active:
        raise InputError(
            f"run={run_dir} now=true: the run has no pending or running job to cancel. Remove now."
        )
    if not active and not any((run_dir / name).exists() for name in ("config.yaml", "slurm")):
        raise InputError(f"run={run_dir}: the folder contains no run. Give a run folder.")
    training = [job for job in active if job.script == "job" and job.state != "PENDING"]
    cancel = [job.number for job in active if config.now or job not in training]
    if cancel:
        subprocess.run(["scancel", *cancel], check=True)
        print(f"Cancelled job {', '.join(cancel)}.")
    if not config.now and (training or not active):
        stop_file = run_dir / "STOP"
        stop_file.touch()
        print(
            f"Wrote {stop_file}. The run saves a checkpoint and stops. Remove the file to start "
            "the run again."
        )


def stop_rented(config: StopConfig, jobs: list[Job]) -> None:
    """Cancels managed jobs, whose run folder this machine cannot reach."""
    if not config.now:
        raise InputError(
            f"run={config.run}: the run is on rented nodes, which a file STOP does not reach. "
            "Cancel its job with now=true; it can continue from its last copied checkpoint."
        )
    sky_jobs.cancel(jobs)
    print(f"Cancelled job {', '.join(job.number for job in jobs)}.")


def _records(path: Path) -> list[dict[str, Any]]:
    """Returns all events and the last steps. Earlier steps are not parsed, as they may be many."""
    events: list[str] = []
    steps: deque[str] = deque(maxlen=RECENT_STEPS)
    if path.exists():
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):  # the last line may be incomplete
                    (steps if line.startswith('{"kind": "train"') else events).append(line)
    return [json.loads(line) for line in [*events, *steps]]


def _modified(path: Path) -> float:
    return path.stat().st_mtime
