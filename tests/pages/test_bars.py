"""Bars, histograms and bands: sizes are to scale, inside the frame, and text is escaped."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from pages.bars import Band, Bands, Bar, Bars, Histogram, Part
from pages.drawing import PHONE, WIDE, drawing


def rectangles(svg: str, style: str) -> list[dict[str, float]]:
    """Returns x, y, width and height of the filled rectangles of a style."""
    found = [e for e in ElementTree.fromstring(svg) if f"fill {style}" in e.get("class", "")]
    return [{k: float(e.attrib[k]) for k in ("x", "y", "width", "height")} for e in found]


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_bars_are_to_scale_and_stack(size):
    bars = Bars(
        "t", [Bar("a", "", (Part(60, "s1"), Part(20, "s2"))), Bar("b", "", (Part(40, "s1"),))]
    )
    svg = bars.svg(*size)
    first, second = rectangles(svg, "s1")
    (rest,) = rectangles(svg, "s2")
    assert first["width"] == pytest.approx(0.75 * size[0], abs=2)
    assert second["width"] == pytest.approx(0.5 * size[0], abs=2)
    assert rest["x"] == pytest.approx(0.75 * size[0], abs=0.1)
    assert rest["x"] + rest["width"] <= size[0]


def test_long_names_are_truncated_and_all_text_is_escaped():
    name = "<script>" + "x" * 200
    svg = Bars("<t>", [Bar(name, "<5>", (Part(1, "s1"),))]).svg(*PHONE)
    assert "<script>" not in svg
    label = ElementTree.fromstring(svg).find("text")
    assert label is not None
    assert label.text is not None
    assert label.text.startswith("<script>x")
    assert label.text.endswith("…")
    for chart in (
        Histogram("<t>", [1, 2], [100.0], "s1", "<x>", [(1.5, "<half>")]),
        Bands("<t>", [(0, 10)], [Band("s1", [1.0])], "<x>", [(0, "<stage>")]),
    ):
        svg = chart.svg(*WIDE)
        ElementTree.fromstring(svg)
        assert "&lt;x&gt;" in svg


def test_histogram_on_a_logarithmic_axis():
    svg = Histogram("t", [1, 2, 4, 8], [50.0, 25.0, 25.0], "s1", "tokens").svg(*WIDE)
    found = rectangles(svg, "s1")
    assert len({round(r["width"], 1) for r in found}) == 1
    assert found[0]["height"] == pytest.approx(2 * found[1]["height"], abs=0.3)
    assert re.findall(r">(\d+[kM]?)</text>", svg) == ["1", "2", "4", "8"]


def test_bands_fill_the_plot():
    spans = [(0.0, 75.0), (75.0, 100.0)]
    bands = [Band("s1", [0.25, 0.0]), Band("s2", [0.75, 1.0])]
    svg = Bands("t", spans, bands).svg(*WIDE)
    (low,) = rectangles(svg, "s1")
    high, whole = rectangles(svg, "s2")
    assert high["width"] == pytest.approx(3 * whole["width"], abs=0.5)
    assert low["y"] == pytest.approx(high["y"] + high["height"], abs=1)
    assert high["height"] + low["height"] == pytest.approx(whole["height"], abs=1.5)


def test_an_empty_chart_draws_nothing():
    charts: list[Any] = [Bars("t", []), Histogram("t", [], [], "s1", "x"), Bands("t", [], [])]
    assert [drawing("t", "", chart.svg, []).wide for chart in charts] == [""] * 3
