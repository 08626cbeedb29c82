"""Line charts as SVG; their colors come from the page's CSS, in light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate, groupby, product

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 56, 14, 22, 40
CHARACTER_WIDTH = 6.4
"""Mean width of a character in labels, in pixels."""
LABEL_ROWS = 3
"""Number of rows for the labels of marks."""
MAX_POINTS = 600
"""Maximum number of points per line; more than one per pixel only makes the page larger."""


@dataclass(frozen=True)
class Series:
    """A line through points (x, y).

    style: CSS class of the line, s0 to s7.
    faint: draws the line in a lighter shade.
    dots: draws a dot at each point.
    joined: draws the line; without it, only the dots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    faint: bool = False
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """A line chart.

    marks: labeled positions on the x axis, such as the starts of stages.
    bottom, top: limits of the y axis, None to fit the points.
    log_x: whether the x axis is logarithmic, for positive x.
    """

    title: str
    unit: str
    series: Sequence[Series]
    x_label: str = "tokens"
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    bottom: float | None = None
    top: float | None = None
    format_y: Callable[[float], str] = lambda value: f"{value:g}"
    log_x: bool = False

    def svg(self, width: int, height: int) -> str:
        """Returns the chart as SVG that scales to the available width."""
        drawn = [s for s in self.series if any(math.isfinite(y) for _, y in s.points)]
        if not drawn:
            return ""
        xs = [x for series in drawn for x, _ in series.points]
        ys = [y for series in drawn for _, y in series.points if math.isfinite(y)]
        low = min(ys) if self.bottom is None else self.bottom
        high = max(ys) if self.top is None else self.top
        y_ticks = ticks(low, high, 5)
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
        count = max(4, width // 130)
        if self.log_x:
            left, x_ticks = min(xs), log_ticks(min(xs), max(xs), count)
        else:
            left = 0.0 if 0 <= min(xs) < 0.1 * max(xs) else min(xs)
            x_ticks = [tick for tick in ticks(left, max(xs), count) if tick % 1 == 0]
        plot = Plot(width, height, left, max(xs), low, high, self.log_x)
        parts = [
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.title)}">',
            *(plot.y_tick(tick, self.format_y(tick)) for tick in y_ticks),
            *(plot.x_tick(tick, short_number(tick)) for tick in x_ticks if left <= tick <= max(xs)),
            f'<text class="axis" x="{width - MARGIN_RIGHT}" y="{height - 6}" '
            f'text-anchor="end">{escape(self.x_label)}</text>',
            *plot.vertical_marks(self.marks),
            *(plot.line(series) for series in drawn),
            "</svg>",
        ]
        return "".join(parts)


@dataclass(frozen=True)
class Plot:
    """Maps values to pixels in the area between the margins."""

    width: int
    height: int
    left: float
    right: float
    low: float
    high: float
    log_x: bool = False

    def x(self, value: float) -> float:
        """Returns the distance of an x value from the left edge of the chart, in pixels."""
        left, right = self.left, self.right
        if self.log_x:
            value, left, right = math.log10(value), math.log10(left), math.log10(right)
        span = (right - left) or 1
        return MARGIN_LEFT + (value - left) / span * (self.width - MARGIN_LEFT - MARGIN_RIGHT)

    def y(self, value: float) -> float:
        """Returns the distance of a y value from the top edge of the chart, in pixels."""
        span = (self.high - self.low) or 1
        inner = self.height - MARGIN_TOP - MARGIN_BOTTOM
        return MARGIN_TOP + (self.high - value) / span * inner

    def contains(self, value: float) -> bool:
        """Returns True if a y value is inside the area; NaN is not."""
        return self.low <= value <= self.high

    def y_tick(self, value: float, label: str) -> str:
        """Returns a horizontal grid line with its label."""
        y = self.y(value)
        return (
            f'<line class="grid" x1="{MARGIN_LEFT}" x2="{self.width - MARGIN_RIGHT}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><text class="axis" x="{MARGIN_LEFT - 8}" '
            f'y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )

    def x_tick(self, value: float, label: str) -> str:
        """Returns a label below the x axis."""
        return (
            f'<text class="axis" x="{self.x(value):.1f}" y="{self.height - MARGIN_BOTTOM + 17}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )

    def vertical_marks(self, marks: Sequence[tuple[float, str]]) -> Iterator[str]:
        """Yields dashed vertical lines with labels.

        A label is placed at the top, right or left of its line, in the first row without overlap.
        Earlier marks are placed first, and labels without space are dropped.
        """
        occupied: list[tuple[int, float, float]] = []
        for value, label in marks:
            x, size = self.x(value), CHARACTER_WIDTH * len(label)
            yield (
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN_TOP - 12}" '
                f'y2="{self.height - MARGIN_BOTTOM}"/>'
            )
            for start, row in product((x + 5, x - 5 - size), range(LABEL_ROWS)):
                end = start + size + 8  # a label of few characters may exceed their mean width
                free = all(row != r or end < left or start > right for r, left, right in occupied)
                if label and free and start >= MARGIN_LEFT and start + size < self.width:
                    occupied.append((row, start, end))
                    yield (
                        f'<text class="mark-label" x="{start:.1f}" '
                        f'y="{MARGIN_TOP - 4 + 15 * row}">{escape(label)}</text>'
                    )
                    break

    def line(self, series: Series) -> str:
        """Returns a line with gaps where it leaves the area, and with dots if requested."""
        pieces = [
            [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in piece]
            for inside, piece in groupby(thinned(series.points), lambda p: self.contains(p[1]))
            if inside
        ]
        path = "".join(f"M{'L'.join(piece if len(piece) > 1 else piece * 2)}" for piece in pieces)
        look = f"line {series.style}" + (" faint" if series.faint else "")
        drawn = f'<path class="{look}" d="{path}"/>' if series.joined else ""
        positions = [position.split() for piece in pieces for position in piece]
        if series.dots or not series.joined or len(positions) == 1:
            drawn += "".join(
                f'<circle class="dot {series.style}" cx="{x}" cy="{y}" r="3"/>'
                for x, y in positions
            )
        return drawn


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers that cover the range from low to high."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns at most `count` round numbers from low to high, evenly spaced by their logarithm.

    They are powers of 10; 1, 2 and 5 times these if the range is short; or, if it has fewer than
    two of them, those of a linear axis.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= count:
            break
    if len(found) < 2:
        return [tick for tick in ticks(low, high, count) if low <= tick <= high]
    return found[:: -(-len(found) // count)]


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Returns evenly spaced points, at most about MAX_POINTS, including the last."""
    stride = -(-len(points) // MAX_POINTS)
    return [*points[:-1:stride], points[-1]] if stride > 1 else points


def smoothed(points: Sequence[tuple[float, float]], half_width: int) -> list[tuple[float, float]]:
    """Returns a centered moving average of the finite points.

    Unlike an exponential average, it does not lag. The window is shorter at the ends.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    sums = list(accumulate((y for _, y in finite), initial=0.0))
    out = []
    for number, (x, _) in enumerate(finite):
        first, end = max(0, number - half_width), min(len(finite), number + half_width + 1)
        out.append((x, (sums[end] - sums[first]) / (end - first)))
    return out


def short_number(value: float) -> str:
    """Formats 1500000 as 1.5M and 0.00015 as 1.5e-4."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.3g}"
