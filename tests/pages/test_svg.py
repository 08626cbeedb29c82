"""Charts: round numbers, points inside the frame, text that is escaped."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.svg import (
    CHARACTER_WIDTH,
    MAX_POINTS,
    Chart,
    Series,
    log_ticks,
    short_number,
    smoothed,
    thinned,
    ticks,
)

numbers = st.floats(-1e4, 1e4)


@given(numbers, st.floats(1e-3, 1e9), st.integers(2, 9))
def test_ticks_reach_from_end_to_end(low, span, count):
    found = ticks(low, low + span, count)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + span - 1e-6 * step
    assert len(found) <= count + 3


def test_ticks_are_round():
    assert ticks(0, 1_640_000, 4) == [0, 500_000, 1_000_000, 1_500_000, 2_000_000]
    assert ticks(3.0, 3.0, 5)  # a flat line has an axis too


@given(st.floats(1e-5, 1e9), st.floats(1.01, 1e9), st.integers(4, 9))
def test_logarithmic_ticks_are_inside_and_few(low, factor, count):
    found = log_ticks(low, low * factor, count)
    assert all(low <= tick <= low * factor for tick in found)
    assert len(found) <= count + 3
    assert found or factor < 1.5


def test_equal_factors_are_equally_far_apart_on_a_logarithmic_axis():
    line = Series("a", [(1e3, 1.0), (1e4, 2.0), (1e5, 1.5)], "s0", joined=False)
    drawn = Chart("t", "", [line], log_x=True).svg(400, 260)
    assert re.findall(r'text-anchor="middle">([^<]+)<', drawn) == ["1k", "10k", "100k"]
    x = [float(value) for value in re.findall(r'<circle [^>]*cx="([^"]+)"', drawn)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert "<path" not in drawn


def test_steps_are_whole_and_numbers_stay_inside():
    line = Series("a", [(1.0, 0.0), (10.0, -0.00138)], "s0")
    drawn = Chart("t", "", [line], x_label="steps").svg(400, 260)
    below = re.findall(r'text-anchor="middle">([^<]+)<', drawn)
    assert below == ["5", "10"]
    beside = re.findall(
        r'<text class="axis" x="(\d+)" y="[^"]+" text-anchor="end">(-[^<]+)<', drawn
    )
    assert {text for _, text in beside} == {"-0.0015", "-0.001", "-0.0005"}
    assert all(int(end) - CHARACTER_WIDTH * len(text) > 0 for end, text in beside)


def test_long_lines_are_thinned_to_their_end():
    points = [(float(n), 1.0) for n in range(10 * MAX_POINTS + 3)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_smoothing_does_not_lag():
    line = [(float(n), 3.0 * n + 1) for n in range(9)]
    assert smoothed(line, 3)[3:-3] == [(x, pytest.approx(y)) for x, y in line[3:-3]]


def test_smoothing_is_the_mean_of_finite_neighbours():
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, 4.0), (3.0, 4.0), (4.0, 0.0)]
    assert smoothed(points, 1) == [(0.0, 2.5), (2.0, 3.0), (3.0, pytest.approx(8 / 3)), (4.0, 2.0)]


def test_points_stay_inside_and_text_is_escaped():
    places = [(0.0, 1.0), (20.0, 4.0), (50.0, 99.0), (100.0, math.nan), (200.0, 2.0)]
    line = Series("a", places, "s0")
    drawn = Chart("<t>", "", [line], marks=[(100.0, "a < b")], bottom=0.0, top=4.0).svg(400, 200)
    path = re.search(r'path class="line s0" d="M([^"]+)"', drawn)
    assert path
    pieces = [
        [tuple(map(float, pair.split())) for pair in piece.split("L")]
        for piece in path.group(1).split("M")
    ]
    assert [len(piece) for piece in pieces] == [2, 2]  # broken where it leaves the frame
    assert pieces[1][0] == pieces[1][1]  # a point alone is a dot of the line
    assert all(0 <= x <= 400 and 0 <= y <= 200 for piece in pieces for x, y in piece)
    assert "a &lt; b" in drawn
    assert "&lt;t&gt;" in drawn


def test_overlapping_labels_move_to_another_row():
    line = Series("a", [(0.0, 1.0), (100.0, 2.0)], "s0")
    marks = [(50.0, "the first"), (52.0, "the second"), (90.0, "x")]
    drawn = Chart("t", "", [line], marks=marks).svg(400, 200)
    rows = re.findall(r'class="mark-label" x="[^"]+" y="([^"]+)"', drawn)
    assert rows[0] == rows[2] != rows[1]


def test_a_label_without_space_is_dropped_and_earlier_marks_come_first():
    line = Series("a", [(0.0, 1.0), (100.0, 2.0)], "s0")
    marks = [(99.0, "the stage"), *((90.0 + number, "restart") for number in range(9))]
    drawn = Chart("t", "", [line], marks=marks).svg(400, 200)
    found = re.findall(r'class="mark-label" x="([^"]+)" y="([^"]+)">([^<]+)<', drawn)
    labels = [(float(x), float(y), text) for x, y, text in found]
    assert labels[0][2] == "the stage"
    assert 3 <= len(labels) < len(marks)
    assert drawn.count('class="mark"') == len(marks)
    for (x, y, text), (other, row, _) in itertools.combinations(sorted(labels), 2):
        assert y != row or x + 6.4 * len(text) < other
    assert all(x + 6.4 * len(text) < 400 for x, _, text in labels)


def test_an_empty_chart_draws_nothing():
    assert Chart("t", "", [Series("a", [], "s0")]).svg(100, 100) == ""
    assert Chart("t", "", [Series("a", [(1.0, math.nan)], "s0")]).svg(100, 100) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_638_400, "1.64M"),
        (950.0, "950"),
        (3e12, "3T"),
        (12_345, "12.3k"),
        (1.5e-4, "1.5e-4"),
        (0.0, "0"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
