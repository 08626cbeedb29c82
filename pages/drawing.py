"""A chart in two widths, for screen and phone, and the colours of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

from pages.svg import Chart

SOURCE_COLOURS = 7
WIDE, HALF, PHONE = (960, 330), (470, 240), (400, 260)
Legend = list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Drawing:
    """A chart for a wide and for a narrow page; legend: name, style, and whether it is faint."""

    title: str
    unit: str
    wide: Markup
    phone: Markup
    legend: Legend
    is_wide: bool


def draw(chart: Chart, *, is_wide: bool = False) -> Drawing:
    """Both drawings of a line chart; all text inside is escaped."""
    legend = [(s.name, s.style, s.faint) for s in chart.series if s.points]
    return drawing(
        chart.title, chart.unit, chart.svg, legend if len(legend) > 1 else [], is_wide=is_wide
    )


def drawing(
    title: str,
    unit: str,
    svg: Callable[[int, int], str],
    legend: Legend,
    *,
    is_wide: bool = False,
) -> Drawing:
    """Both drawings by a function of width and height, which has escaped what it shows."""
    size = WIDE if is_wide else HALF
    return Drawing(title, unit, Markup(svg(*size)), Markup(svg(*PHONE)), legend, is_wide)


def source_styles(sources: Iterable[str]) -> dict[str, str]:
    """A colour of the page for every source, the same wherever it is drawn."""
    return {source: f"s{1 + number % SOURCE_COLOURS}" for number, source in enumerate(sources)}
