"""Formatting shared by all folders."""

from __future__ import annotations

import pytest

from conf.text import flatten, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (59.4, "59 s"),
        (59.9, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (355_000, "4 d 2 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_flatten_joins_keys_with_dots():
    content = {"a": {"b": 1, "c": {"d": [2]}}, "e": None}
    assert flatten(content) == {"a.b": 1, "a.c.d": [2], "e": None}
