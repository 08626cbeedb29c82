"""Bars, histograms and stacked bands as SVG, with colors from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from pages.svg import (
    CHARACTER_WIDTH,
    MARGIN_RIGHT,
    Plot,
    short_number,
    ticks,
)

ROW, BAR = 38, 12
GAP = 1.5


@dataclass(frozen=True)
class Part:
    """A segment of a bar.

    value: length, in the unit that all bars share.
    style: CSS class, s0 to s8.
    faint: draws the segment in a lighter shade.
    """

    value: float
    style: str
    faint: bool = False


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of segments, with a label on the left and a text on the right."""

    label: str
    text: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, each below its label, so that long names fit on a phone."""

    title: str
    bars: Sequence[Bar]

    def svg(self, width: int, height: int) -> str:
        """Returns the chart as SVG; its height depends on the number of bars, not on `height`."""
        if not self.bars:
            return ""
        height = ROW * len(self.bars) + 4
        most = max(sum(part.value for part in bar.parts) for bar in self.bars) or 1
        drawn = [svg_start(width, height, self.title)]
        for number, bar in enumerate(self.bars):
            top = ROW * number
            max_chars = int(
                (width - CHARACTER_WIDTH * 1.2 * len(bar.text)) / (CHARACTER_WIDTH * 1.15)
            )
            label = bar.label if len(bar.label) <= max_chars else bar.label[: max_chars - 1] + "…"
            drawn.append(
                f'<text class="name" x="0" y="{top + 15}">{escape(label)}</text>'
                f'<text class="axis" x="{width}" y="{top + 15}" text-anchor="end">'
                f"{escape(bar.text)}</text>"
                f'<rect class="track" x="0" y="{top + 21}" width="{width}" height="{BAR}" rx="3"/>'
            )
            left = 0.0
            for part in bar.parts:
                size = part.value / most * width
                if size > 0:
                    shown = max(size - GAP, min(size, 1.0))
                    drawn.append(_fill(part, left, top + 21, shown, BAR, "3"))
                left += size
        return "".join([*drawn, "</svg>"])


@dataclass(frozen=True)
class Histogram:
    """A histogram on a logarithmic x axis.

    edges: positive edges of the bins in ascending order, one more than there are shares.
    shares: percent per bin.
    marks: labeled positions on the x axis.
    """

    title: str
    edges: Sequence[float]
    shares: Sequence[float]
    style: str
    x_label: str
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)

    def svg(self, width: int, height: int) -> str:
        """Returns the chart as SVG."""
        if not self.shares:
            return ""
        y_ticks = ticks(0, max(self.shares), 4)
        edges = [math.log2(edge) for edge in self.edges]
        plot = Plot(width, height, edges[0], edges[-1], 0, y_ticks[-1])
        drawn = [
            svg_start(width, height, self.title),
            *(plot.y_tick(tick, f"{tick:.3g}%") for tick in y_ticks),
        ]
        for left, right, share in zip(edges, edges[1:], self.shares, strict=False):
            x, top = plot.x(left), plot.y(share)
            size = max(0.5, plot.x(right) - x - 1)
            drawn.append(_fill(Part(share, self.style), x, top, size, plot.y(0) - top, "1"))
        step = max(1, math.ceil((edges[-1] - edges[0]) / (width / 62)))
        powers = range(math.ceil(edges[0]), math.floor(edges[-1]) + 1, step)
        drawn += [plot.x_tick(power, _power(power)) for power in powers]
        drawn.append(_below_axis(width, height, self.x_label))
        drawn += plot.vertical_marks([(math.log2(value), label) for value, label in self.marks])
        return "".join([*drawn, "</svg>"])


@dataclass(frozen=True)
class Band:
    """One layer of a stack.

    shares: fraction of the layer in each span, from 0 to 1.
    """

    style: str
    shares: Sequence[float]


@dataclass(frozen=True)
class Bands:
    """Stacked fractions that are constant over each span of the x axis.

    spans: (start, end) of each span on the x axis.
    bands: layers from bottom to top.
    marks: labeled positions on the x axis.
    """

    title: str
    spans: Sequence[tuple[float, float]]
    bands: Sequence[Band]
    x_label: str = "tokens"
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    format_x: Callable[[float], str] = short_number

    def svg(self, width: int, height: int) -> str:
        """Returns the chart as SVG."""
        if not self.spans:
            return ""
        end = self.spans[-1][1]
        plot = Plot(width, height, 0.0, end, 0.0, 1.0)
        drawn = [svg_start(width, height, self.title)]
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            drawn.append(plot.y_tick(tick, f"{tick:.0%}"))
        for number, (start, stop) in enumerate(self.spans):
            below = 0.0
            x = plot.x(start)
            size = max(0.5, plot.x(stop) - x)
            for band in self.bands:
                share = band.shares[number]
                if share > 0:
                    top, bottom = plot.y(below + share), plot.y(below)
                    tall = max(0.5, bottom - top - 0.7)
                    drawn.append(_fill(Part(share, band.style), x, top, size, tall, "0"))
                below += share
        x_ticks = ticks(0, end, max(3, width // 130))
        drawn += [plot.x_tick(tick, self.format_x(tick)) for tick in x_ticks if tick <= end]
        drawn.append(_below_axis(width, height, self.x_label))
        drawn += plot.vertical_marks(self.marks)
        return "".join([*drawn, "</svg>"])


def svg_start(width: int, height: float, title: str) -> str:
    """Returns the opening tag of an SVG."""
    return f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}">'


def _fill(part: Part, x: float, y: float, width: float, height: float, radius: str) -> str:
    look = f"fill {part.style}" + (" faint" if part.faint else "")
    return (
        f'<rect class="{look}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{max(0.0, height):.1f}" rx="{radius}"/>'
    )


def _below_axis(width: int, height: int, text: str) -> str:
    return (
        f'<text class="axis" x="{width - MARGIN_RIGHT}" y="{height - 6}" '
        f'text-anchor="end">{escape(text)}</text>'
    )


def _power(exponent: int) -> str:
    """Formats a power of two: 16, 512, 1k, 64k, 2M."""
    for letter, size in (("G", 30), ("M", 20), ("k", 10)):
        if exponent >= size:
            return f"{2 ** (exponent - size)}{letter}"
    return str(2**exponent)
