"""Draws a chart in two widths, for screens and phones, and assigns colors to sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

from pages.svg import Chart

LINE_STYLES = 8
"""Number of line colors on a page: CSS classes s0 to s7."""
SOURCE_STYLES = LINE_STYLES - 1
"""Number of line colors for sources; s0 is reserved for their total."""
WIDE, HALF, PHONE = (960, 330), (470, 240), (400, 260)
Legend = list[tuple[str, str, bool]]
"""Entries of a legend: name, CSS class, and whether it is faint."""


@dataclass(frozen=True)
class Drawing:
    """A chart drawn in two widths, for wide and narrow pages."""

    title: str
    unit: str
    wide: Markup
    phone: Markup
    legend: Legend
    is_wide: bool


def draw(chart: Chart, *, is_wide: bool = False) -> Drawing:
    """Draws a line chart in both widths, with all text escaped."""
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
    """Draws a chart in both widths.

    svg: returns the drawing for a width and height, with all text escaped.
    """
    size = WIDE if is_wide else HALF
    return Drawing(title, unit, Markup(svg(*size)), Markup(svg(*PHONE)), legend, is_wide)


def source_styles(sources: Iterable[str]) -> dict[str, str]:
    """Returns the CSS class of each source, so that its color is the same in all charts."""
    return {source: f"s{1 + number % SOURCE_STYLES}" for number, source in enumerate(sources)}
