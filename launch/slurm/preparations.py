"""Shows the progress of unfinished preparations, which `python -m data_pipeline tokenize` makes."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from conf.text import format_duration
from data_pipeline.tokenizing.progress import Progress, find_work, read_progress


def preparations(folder: Path) -> list[Progress]:
    """Returns the progress of the unfinished preparations in a folder, or of one of them."""
    partial = folder.with_name(folder.name.removesuffix(".partial") + ".partial")
    found = {work for place in {folder, partial} if place.is_dir() for work in find_work(place)}
    return [read_progress(work) for work in sorted(found)]


def preparations_table(found: list[Progress]) -> Table:
    """Returns a table with one row per preparation."""
    table = Table(box=None, pad_edge=False)
    for title in ("preparation", "state", "phase", "done", "MB/s", "left in phase", "jobs"):
        right = title not in ("preparation", "state", "phase")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for one in found:
        speed, left = one.bytes_per_second, one.seconds_left
        table.add_row(
            str(one.out),
            state_of_preparation(one),
            one.phase,
            f"{one.done:.1%}",
            "" if speed is None else f"{speed / 1e6:,.1f}",
            "" if left is None else format_duration(left),
            str(one.jobs),
        )
    return table


def preparation_line(one: Progress) -> str:
    """Returns the progress of a preparation in one line of Markdown."""
    parts = [f"**{one.out}**: {state_of_preparation(one)}", f"{one.phase} {one.done:.1%}"]
    if one.bytes_per_second is not None:
        parts.append(f"{one.bytes_per_second / 1e6:,.1f} MB/s")
    if one.seconds_left is not None:
        parts.append(f"{format_duration(one.seconds_left)} left in this phase")
    return " · ".join(parts)


def state_of_preparation(one: Progress) -> str:
    """Returns `running` if a task ended lately, else `not responding`."""
    return "running" if one.is_active else "not responding"
