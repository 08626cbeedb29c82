"""Time limits grow with the machine and its load."""

from __future__ import annotations

import os

import pytest

from tests import patience


def test_a_limit_grows_with_slowness_and_load(monkeypatch):
    monkeypatch.setenv(patience.VARIABLE, "2.5")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for load, expected in ((0.3, 25), (4.0, 50), (1000.0, 10 * patience.MOST)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert patience.limit(10) == expected


def test_the_machine_is_measured_once(monkeypatch):
    monkeypatch.delenv(patience.VARIABLE)
    measured = iter([1.5])
    monkeypatch.setattr(patience, "_measured", lambda: next(measured))
    assert patience.slowness() == patience.slowness() == 1.5
    monkeypatch.undo()
    assert patience._measured() >= 1


@pytest.mark.timeout(600)
def test_the_limit_of_a_test_is_such_a_one(request):
    assert request.node.get_closest_marker("timeout").args[0] >= 600 * patience.slowness()
