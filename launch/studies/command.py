"""`python -m launch study`: plans and runs a study, and writes its page."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import yaml
from rich.table import Table

from conf.errors import EXIT_FAILED, EXIT_REQUEUE, InputError, RunAborted
from conf.files import write_text
from conf.text import format_duration, table_console
from launch import training
from launch.local import gpus
from launch.slurm.settings import SlurmConfig, read_cluster
from launch.studies.base_command import BaseCommand, merged
from launch.studies.config import SLURM, StudyConfig, cluster_of, kind_of
from launch.studies.costs import Cost, Costs, total
from launch.studies.here import Here
from launch.studies.jobs import Jobs
from launch.studies.page import render_study
from launch.studies.study import STOP, Starter, Study, locked
from launch.studies.tables import write_results
from pages.svg import short_number

FILE = "study.yaml"
PAGE = "study.html"


def study(config: StudyConfig) -> None:
    """Prints the plan of a study, or runs what is missing of it and writes its page.

    Exits with EXIT_FAILED if a run has failed for good, and with EXIT_REQUEUE if the study was
    stopped, or does not wait for its jobs.
    """
    nproc = config.nproc or (
        read_cluster(config.cluster).gpus_per_node if config.on == SLURM else gpus()
    )
    keys = dict(config.study)
    keys["base"] = list(merged(keys.get("base") or [], training.overrides))
    kind = kind_of(keys)
    folder = Path(config.out)
    check_folder(folder)
    cluster = cluster_of(config.cluster, config.nodes, nproc)
    made = Study(kind, BaseCommand(kind.base, folder, cluster), Costs(cluster))
    if config.plan:
        made.look()
        print_plan(made)
        return
    with locked(folder) as lock:
        start_again(folder)
        if config.retry:
            made.records.forget_failures()
        made.look()
        print_plan(made)
        made.records.write()
        write_text(folder / FILE, yaml.safe_dump(keys, sort_keys=False))
        starter: Starter = Here(folder, nproc, lock)
        if config.on == SLURM:
            job = SlurmConfig(
                cluster=config.cluster,
                nodes=config.nodes,
                nproc=nproc,
                time=config.time,
                partition=config.partition,
                node_check=config.node_check,
            )
            starter = Jobs(folder / "runs", job)
        try:
            with stopping():
                made.run(starter, config.jobs, config.wait)
        except KeyboardInterrupt:
            starter.stop()
            raise RunAborted(
                f"out={folder}: stopped. The same command continues the study.", EXIT_REQUEUE
            ) from None
        finally:
            write_results(made)
        page = folder / PAGE
        write_text(page, render_study(made))
    print(f"page: {page.resolve().as_uri()}")
    if made.failed:
        print(f"failed: {', '.join(made.failed)}. retry=true starts them again.", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def check_folder(folder: Path) -> None:
    """Raises InputError if the folder holds anything but a study."""
    if folder.is_dir() and any(folder.iterdir()) and not is_study(folder):
        raise InputError(f"out={folder}: the folder holds no study. Give a new folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder}: this is a file. Give a folder.")
    if (folder / STOP).exists():
        raise InputError(
            f"{folder / STOP} exists, which stops the study. Remove the file to continue it."
        )


def is_study(folder: Path) -> bool:
    """Returns True for the folder of a study."""
    return (folder / FILE).is_file() or {path.name for path in folder.iterdir()} <= {"lock"}


def start_again(folder: Path) -> None:
    """Removes the stop files that `python -m launch stop run=<study>` wrote into run folders."""
    for path in folder.glob(f"runs/*/{STOP}"):
        path.unlink()


@contextmanager
def stopping() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, so that both stop the study in the same way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_plan(made: Study) -> None:
    """Prints the runs with their planned cost, and the total."""
    console = table_console()
    table = Table(box=None, pad_edge=False)
    columns = ("run", "state", "tokens", "FLOPs", "time", "cost")
    for title in columns:
        table.add_column(title, justify="left" if title in columns[:2] else "right")
    costs = made.planned()
    for name, cost in costs.items():
        table.add_row(name, state_of(made, name), *cells(made, cost))
    later = made.later()
    if later.tokens:
        table.add_row("runs that follow from results", "later", *cells(made, later))
    table.add_row("total", "", *cells(made, total(costs.values()) + later))
    console.print(table)
    speed = (
        f"the speed of the {len(made.results)} finished runs"
        if made.results
        else f"the typical speed of cluster={made.base.cluster.name}"
    )
    console.print(f"Times are planned with {speed}.", highlight=False)


def state_of(made: Study, name: str) -> str:
    """Returns the state of a run: finished, failed, begun or missing."""
    if made.is_done(name):
        return "finished"
    if name in made.failed:
        return "failed"
    return "begun" if made.base.run_dir(name).is_dir() else "missing"


def cells(made: Study, cost: Cost) -> list[str]:
    """Returns tokens, FLOPs, time and price as text."""
    price = f"{cost.price:,.2f} {made.base.cluster.currency}" if cost.price else ""
    time = format_duration(cost.seconds)
    return [short_number(cost.tokens), f"{cost.flops:.2e}", time, price]
