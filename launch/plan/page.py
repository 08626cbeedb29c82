"""The plan as one page that opens offline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.text import GIB
from launch.plan import tables
from launch.plan.outlook import Outlook
from pages.bars import Bar, Bars, Part
from pages.drawing import drawing
from pages.page import render
from pages.svg import short_number
from pretrain.planning.memory import KIND

TEMPLATE = Path(__file__).parent / "templates" / "plan.html"
MEMORY_STYLES = {name: f"s{number}" for number, name in enumerate(KIND)}
TIME_STYLES = {
    "matmul": "s1",
    "attention": "s2",
    "elementwise": "s3",
    "optimizer": "s4",
    "exposed": "s6",
}
TIME_NAMES = {"elementwise": "element-wise", "exposed": "communication that nothing hides"}


def page(outlook: Outlook) -> str:
    """The HTML."""
    cluster = outlook.config.cluster
    days = outlook.days
    return render(
        TEMPLATE,
        {
            "name": outlook.config.model.name,
            "lead": f"{short_number(outlook.plan.total_tokens)} tokens of recipe "
            f"{outlook.config.recipe.name} on {cluster.nodes} x {cluster.gpus_per_node} "
            f"{cluster.gpu}: {days.low:,.1f} to {days.high:,.1f} days.",
            "speeds": (
                f"Speeds are calibrated by {outlook.measured}."
                if outlook.measured
                else "Speeds are a range, from what published trainers usually reach to the best "
                "that is known; a measurement of this GPU makes it narrow."
            ),
            "totals": tables.totals(outlook),
            "charts": [timeline(outlook), steps(outlook), memory(outlook)],
            "grids": [tables.stages(outlook), tables.memory(outlook)],
            "layouts": tables.layouts(outlook),
            "text": tables.TEXT,
            "refused": [(option.name, option.problem) for option in outlook.refused],
            "warnings": outlook.warnings,
        },
    )


def timeline(outlook: Outlook) -> Any:
    """Days of each stage, one after the other."""
    stages = outlook.best.stages
    styles = {s.stage.name: f"s{number % 7 + 1}" for number, s in enumerate(stages)}
    bars = [
        Bar(label, f"{sum(ends):,.1f} days", [
            Part(end, styles[s.stage.name]) for end, s in zip(ends, stages, strict=True)
        ])
        for label, ends in (
            ("at best", [s.days.low for s in stages]),
            ("usually", [s.days.high for s in stages]),
        )
    ]  # fmt: skip
    legend = [
        (f"{s.stage.name} ({s.stage.seq_len:,})", styles[s.stage.name], False) for s in stages
    ]
    return drawing(
        "Timeline by stage",
        f"days, {tables.speed_kind(outlook)}",
        Bars("days", bars).svg,
        legend,
        is_wide=True,
    )


def steps(outlook: Outlook) -> Any:
    """What a step of each stage is made of."""
    bars = []
    for found in outlook.best.stages:
        time = found.times[1]
        parts = [Part(getattr(time, name), style) for name, style in TIME_STYLES.items()]
        bars.append(Bar(found.stage.name, f"{time.total:.3g} s", parts))
    legend = [(TIME_NAMES.get(n, n), style, False) for n, style in TIME_STYLES.items()]
    return drawing(
        "A step, usually",
        f"seconds, {tables.speed_kind(outlook)}",
        Bars("seconds", bars).svg,
        legend,
    )


def memory(outlook: Outlook) -> Any:
    """Memory of a GPU by part, of the layouts in the table."""
    bars = []
    for layout in outlook.layouts[: outlook.config.show]:
        found = tables.memory_of(layout)
        parts = [Part(size / GIB, MEMORY_STYLES[name]) for name, size in asdict(found).items()]
        text = f"{found.total / GIB:.1f} of {outlook.config.cluster.gpu_memory_gib:g}"
        bars.append(Bar(layout.option.name, text, parts))
    legend = [(name, style, False) for name, style in MEMORY_STYLES.items()]
    return drawing(
        "Memory of a GPU",
        "GiB at the peak, assumed but for the state",
        Bars("GiB", bars).svg,
        legend,
    )
