"""Prints the plan of a preparation, and returns it as the content of a JSON file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from conf.text import GIB, format_bytes, format_duration, table_console
from data_pipeline.sizing.intervals import Interval

FORMAT = 1
EXACT, MEASURED, ESTIMATED = "exact", "measured", "estimated"


def show(plan: dict[str, Any]) -> None:
    """Prints a plan, given as the content of its JSON file."""
    console = table_console()
    array = plan["array"]
    sample = plan["sample"]
    console.print(
        f"[bold]{plan['corpus']}[/bold]: {sample['documents']:,} of "
        f"{plan['documents']['value']:,.0f} documents went through all stages; "
        f"{sample['read']:.1%} of the files was read"
    )
    table = _table("what is dropped", "source", "step", "documents", "share", "from", "to")
    for row in plan["drops"]:
        documents = plan["sources"][row["source"]]["documents"]
        table.add_row(
            row["source"],
            row["step"],
            f"{row['value']:,.0f}",
            *(f"{row[key] / max(1, documents):.2%}" for key in ("value", "low", "high")),
        )
    console.print(table)
    table = _table("phases", "phase", "tasks", "CPU-hours", "GiB per process", "time", "limit")
    for phase in plan["phases"]:
        name = phase["name"]
        table.add_row(
            name,
            f"{phase['tasks']:,}",
            f"{phase['cpu_seconds'] / 3600:,.2f}",
            f"{phase['memory_bytes'] / GIB:.2f}",
            format_duration(array["phases"][name]),
            format_duration(array["limits"][name]),
        )
    console.print(table)
    for label, value, confidence in totals(plan):
        console.print(f"  {label:<22} {value}  [dim]{confidence}[/dim]", soft_wrap=True)
    for warning in plan["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)


def totals(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns rows of (name, value, confidence) for the whole preparation."""
    array, disk = plan["array"], plan["disk"]
    documents = EXACT if plan["sample"]["read"] >= 1 else ESTIMATED
    return [
        ("documents", _range(plan["documents"], _count), documents),
        ("- kept", _range(plan["kept"], _count), ESTIMATED),
        ("text kept", _range(plan["text_bytes"], format_bytes), ESTIMATED),
        ("tokens", _range(plan["tokens"], _count), ESTIMATED),
        ("CPU-hours", f"{plan['cpu_seconds'] / 3600:,.2f}", MEASURED),
        ("memory per process", f"{plan['memory_bytes'] / GIB:.2f} GiB at most", ESTIMATED),
        ("disk in between", format_bytes(disk["between_bytes"]), ESTIMATED),
        ("disk for the corpus", _range(disk["corpus"], format_bytes), ESTIMATED),
        ("files", f"{disk['between_files']:,} in between, {disk['corpus_files']:,} of the corpus",
         ESTIMATED),
        ("array", f"{array['tasks']:,} jobs of {array['cpus']} cores and "
         f"{array['memory_bytes'] / GIB:.0f} GiB: {format_duration(array['seconds'])} for all "
         f"{len(array['phases'])} phases",
         MEASURED),
    ]  # fmt: skip


def as_json(found: Interval) -> dict[str, float]:
    """Returns an interval as the content of a JSON file."""
    return {"low": found.low, "value": found.value, "high": found.high}


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _range(found: dict[str, float], form: Callable[[float], str]) -> str:
    low, value, high = (form(found[key]) for key in ("low", "value", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        text = name in ("source", "step", "phase")
        table.add_column(name, justify="left" if text else "right")
    return table
