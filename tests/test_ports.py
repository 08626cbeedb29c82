"""Ports of tests are outside the range that the kernel assigns to connections."""

from __future__ import annotations

import pytest

from tests.ports import choices


@pytest.mark.parametrize(
    ("of_connections", "expected"),
    [
        ((32_768, 60_999), range(10_000, 32_768)),
        ((10_000, 60_999), range(2_000, 10_000)),
        ((1_024, 60_999), range(61_000, 65_536)),
        ((1_024, 65_535), range(10_000, 20_000)),
    ],
)
def test_ports_are_not_those_of_connections(of_connections, expected):
    assert choices(*of_connections) == expected
