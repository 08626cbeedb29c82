"""Figures and tables of a ladder's page."""

from __future__ import annotations

import json

import numpy as np

from launch.studies.fits.scaling_law import LEVEL, Fit, Interval
from launch.studies.kind import Figure, Finding, Table
from launch.studies.ladder.finding import LadderFinding
from launch.studies.ladder.trained import Trained
from pages.drawing import LINE_STYLES, Legend, drawing
from pages.svg import Chart, Series, short_number

TOTAL, GOT = "s0", "s7"
FORECAST_FILE = "forecast.json"
"""File in the folder of the study that `python -m pretrain forecast=` takes."""
SAMPLES = 40
"""Points per curve."""
MOST_SHOWN = 1.5
"""Loss of the drawing at equal FLOPs above which it is cut off, as a multiple of the lowest."""


def finding_of(found: LadderFinding) -> Finding:
    """Returns the sentences, figures, tables and files of a ladder.

    Raises:
        InputError: too few runs have finished.
    """
    tables = [constants_table(found.law), sources_table(found.by_source, found)]
    if found.scores:
        tables.append(tasks_table(found.scores))
    return Finding(
        decision=found.decision,
        facts=found.facts,
        figures=figures(found),
        tables=tables,
        files={FORECAST_FILE: json.dumps(found.forecast_content, indent=1) + "\n"},
        numbers=found.numbers,
    )


def figures(found: LadderFinding) -> list[Figure]:
    """Returns the drawings: the fit, its residuals, and the loss at equal FLOPs."""
    return [_fit_figure(found), _residual_figure(found), _equal_flops_figure(found)]


def _styles(found: LadderFinding) -> dict[float, str]:
    """Returns the color of each size."""
    sizes = sorted(set(found.law.points.parameters))
    return {size: f"s{1 + number % (LINE_STYLES - 2)}" for number, size in enumerate(sizes)}


def _fit_figure(found: LadderFinding) -> Figure:
    points, law = found.law.points, found.law.law
    last = max(points.tokens.max(), found.target.tokens)
    series, legend = [], []
    for size, style in _styles(found).items():
        own = points.parameters == size
        dots = list(zip(points.tokens[own], points.losses[own], strict=True))
        xs = np.geomspace(points.tokens[own].min(), last, SAMPLES)
        line = [(float(x), float(law.loss(size, x))) for x in xs]
        series += [
            Series("", line, style, faint=True),
            Series(short_number(size), dots, style, joined=False),
        ]
        legend.append((f"{short_number(size)} parameters", style, False))
    tokens, forecast = found.target.tokens, found.forecast
    series += [
        Series("", [(tokens, forecast.low), (tokens, forecast.high)], TOTAL),
        Series("", [(tokens, forecast.value)], TOTAL, joined=False),
    ]
    legend.append((f"forecast of {short_number(found.target.size)}", TOTAL, False))
    if found.got:
        reached = [(tokens, loss) for loss in found.got.losses]
        series.append(Series("", reached, GOT, joined=False))
        legend.append(("the target after training", GOT, False))
    chart = Chart("Held-out loss by tokens", "nats per token", series, log_x=True)
    caption = (
        "Dots are runs, lines the fitted law. The bar is the forecast of the target with its "
        f"{LEVEL:.0%} interval."
    )
    return _figure(chart, legend, caption, is_wide=True)


def _residual_figure(found: LadderFinding) -> Figure:
    points, residuals = found.law.points, 100 * found.law.residuals
    series: list[Series] = []
    legend: Legend = []
    ends = (float(points.tokens.min()), float(points.tokens.max()))
    for size, style in _styles(found).items():
        own = points.parameters == size
        dots = list(zip(points.tokens[own], residuals[own], strict=True))
        series.append(Series("", dots, style, joined=False))
        legend.append((short_number(size), style, False))
    series.append(Series("", [(end, 0.0) for end in ends], TOTAL, faint=True))
    chart = Chart("Residuals", "% of the loss", series, log_x=True)
    return _figure(chart, legend, "Difference of each run from the law; above 0, it is worse.")


def _equal_flops_figure(found: LadderFinding) -> Figure:
    first = max(found.best.value / 12, found.flops_by_size.smallest)
    xs = np.geomspace(first, found.best.value * 12, SAMPLES)
    lines: dict[str, list[tuple[float, float]]] = {"value": [], "low": [], "high": []}
    for x in map(float, xs):
        tokens = found.flops / found.flops_by_size(x)
        at = found.law.interval(lambda law, x=x, tokens=tokens: float(law.loss(x, tokens)))  # type: ignore[misc]
        for name, points in lines.items():
            points.append((x, getattr(at, name)))
    series = [
        Series("", lines["value"], TOTAL),
        Series("", lines["low"], TOTAL, faint=True),
        Series("", lines["high"], TOTAL, faint=True),
    ]
    marks = [(found.best.value, "best size")]
    if xs[0] < found.target.size < xs[-1]:
        marks.append((found.target.size, "target"))
    highest = max(loss for points in lines.values() for _, loss in points)
    title = f"Loss for {found.flops:.2g} FLOPs by size"
    chart = Chart(
        title,
        "nats per token",
        series,
        x_label="parameters",
        marks=marks,
        top=min(highest, MOST_SHOWN * min(loss for _, loss in lines["value"])),
        log_x=True,
    )
    legend = [("law", TOTAL, False), (f"{LEVEL:.0%} interval", TOTAL, True)]
    caption = "Larger models see fewer tokens for the same FLOPs."
    return _figure(chart, legend, caption)


def _figure(chart: Chart, legend: Legend, caption: str, *, is_wide: bool = False) -> Figure:
    return Figure(drawing(chart.title, chart.unit, chart.svg, legend, is_wide=is_wide), caption)


def constants_table(law: Fit) -> Table:
    """Returns the constants with intervals that cover all of them together."""
    rows = [
        [name, f"{at.value:.4g}", f"{at.low:.4g} to {at.high:.4g}"]
        for name, at in law.constants.items()
    ]
    note = f"All five are inside their intervals together with a probability of {LEVEL:.0%}."
    return Table("Constants of the law", ["constant", "value", "interval"], rows, note)


def sources_table(by_source: dict[str, dict[str, Fit]], found: LadderFinding) -> Table:
    """Returns the forecast per source, and what the target reached."""
    size, tokens, got = found.target.size, found.target.tokens, found.got
    columns = ["source", "unit", "forecast", "interval", "irreducible (E)"]
    rows = []
    for source, fits in by_source.items():
        for unit, (name, fit) in enumerate(fits.items()):
            at = fit.forecast(size, tokens)
            row = [source, name.replace("_", " "), f"{at.value:.4f}", _interval(at)]
            row.append(f"{fit.law.E:.3f}")
            rows.append(row + _reached(got, source, unit, at))
    columns += ["reached", "forecast off by"] if got else []
    return Table("Forecast by source", columns, rows)


def _reached(got: Trained | None, source: str, unit: int, at: Interval) -> list[str]:
    if got is None:
        return []
    value = got.of_source(source, unit)
    return ["", ""] if value is None else [f"{value:.4f}", f"{at.value / value - 1:+.2%}"]


def tasks_table(scores: dict[str, Interval]) -> Table:
    """Returns the forecasts of scores."""
    rows = [
        [task, f"{at.value:.1%}", f"{at.low:.1%} to {at.high:.1%}"] for task, at in scores.items()
    ]
    note = "From the forecast of the loss, by a sigmoid fitted to the runs."
    return Table("Forecast of scores", ["task", "forecast", "interval"], rows, note)


def _interval(at: Interval) -> str:
    return f"{at.low:.4f} to {at.high:.4f}"
