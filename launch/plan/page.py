"""Renders the plan as one self-contained HTML page."""

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
from pretrain.planning.memory import CONFIDENCE, shown_parts

TEMPLATE = Path(__file__).parent / "templates" / "plan.html"
MEMORY_STYLES = {name: f"s{number}" for number, name in enumerate(CONFIDENCE)}
TIME_STYLES = {
    "matmul": "s1",
    "attention": "s2",
    "elementwise": "s3",
    "optimizer": "s4",
    "exposed": "s6",
}
TIME_NAMES = {"elementwise": "element-wise", "exposed": "exposed communication"}


def render_plan(outlook: Outlook) -> str:
    """Returns the HTML of a plan."""
    cluster = outlook.config.cluster
    days = outlook.days
    return render(
        TEMPLATE,
        {
            "name": outlook.config.model.name,
            "lead": f"{short_number(outlook.tokens)} tokens of recipe "
            f"{outlook.config.recipe.name} on {cluster.nodes} x {cluster.gpus_per_node} "
            f"{cluster.gpu}: {days.low:,.1f} to {days.high:,.1f} days.",
            "speeds": (
                f"Speeds are calibrated with {outlook.calibration}."
                if outlook.calibration
                else "Speeds are a range from the typical to the best known speed of published "
                "trainers. A measurement of this GPU narrows it."
            ),
            "totals": tables.totals(outlook),
            "charts": [timeline(outlook), step_times(outlook), memory(outlook)],
            "grids": [tables.stages(outlook), tables.memory(outlook)],
            "layouts": tables.layouts(outlook),
            "text": tables.TEXT_COLUMNS,
            "refused": [(option.name, option.problem) for option in outlook.refused],
            "warnings": outlook.warnings,
        },
    )


def timeline(outlook: Outlook) -> Any:
    """Returns a drawing of the days that each stage takes, one stage after the other."""
    stages = outlook.best.stages
    styles = {s.stage.name: f"s{number % 7 + 1}" for number, s in enumerate(stages)}
    bars = [
        Bar(label, f"{sum(ends):,.1f} days", [
            Part(end, styles[s.stage.name]) for end, s in zip(ends, stages, strict=True)
        ])
        for label, ends in (
            ("best", [s.days.best for s in stages]),
            ("typical", [s.days.typical for s in stages]),
        )
    ]  # fmt: skip
    legend = [
        (f"{s.stage.name} ({s.stage.seq_len:,})", styles[s.stage.name], False) for s in stages
    ]
    return drawing(
        "Timeline by stage",
        f"days, {tables.speed_confidence(outlook)}",
        Bars("days", bars).svg,
        legend,
        is_wide=True,
    )


def step_times(outlook: Outlook) -> Any:
    """Returns a drawing of the parts of a step's time in each stage."""
    bars = []
    for found in outlook.best.stages:
        time = found.times[1]
        parts = [Part(getattr(time, name), style) for name, style in TIME_STYLES.items()]
        bars.append(Bar(found.stage.name, f"{time.total:.3g} s", parts))
    legend = [(TIME_NAMES.get(n, n), style, False) for n, style in TIME_STYLES.items()]
    return drawing(
        "Typical time of a step",
        f"seconds, {tables.speed_confidence(outlook)}",
        Bars("seconds", bars).svg,
        legend,
    )


def memory(outlook: Outlook) -> Any:
    """Returns a drawing of the memory per GPU by part, for the layouts in the table."""
    bars = []
    for layout in outlook.layouts[: outlook.config.show]:
        found = tables.memory_of(layout)
        parts = [Part(size / GIB, MEMORY_STYLES[name]) for name, size in asdict(found).items()]
        text = f"{found.total / GIB:.1f} of {outlook.config.cluster.gpu_memory_gib:g}"
        bars.append(Bar(layout.option.name, text, parts))
    shown = shown_parts(map(tables.memory_of, outlook.layouts))
    legend = [(name, MEMORY_STYLES[name], False) for name in shown]
    return drawing(
        "Memory per GPU",
        "GiB at the peak, assumed except for the state",
        Bars("GiB", bars).svg,
        legend,
    )
