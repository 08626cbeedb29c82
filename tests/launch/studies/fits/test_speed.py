"""Durations of runs from those of finished ones."""

from __future__ import annotations

import pytest

from launch.studies.fits.speed import ASSUMED, Duration, Speed, speed_of


def test_without_finished_runs_the_speed_is_assumed():
    assert speed_of([]) == pytest.approx(ASSUMED)


def test_the_calls_of_tiny_steps_do_not_slow_a_large_run_down():
    true = Speed(fixed=8.0, per_step=0.025, slowness=2.0)
    tiny = [
        Duration(steps, planned, true.seconds(steps, planned))
        for steps, planned in ((600, 0.5), (100, 0.1), (800, 2.0), (150, 0.5), (1000, 6.0))
    ]
    large = true.seconds(3000, 100.0)
    assert speed_of(tiny).seconds(3000, 100.0) == pytest.approx(large, rel=0.1)
    one_factor = sum(run.used for run in tiny) / sum(run.planned for run in tiny)
    assert one_factor * 100.0 > 3 * large


def test_one_finished_run_is_met():
    found = speed_of([Duration(100, 1000.0, 5000.0)])
    assert found.seconds(100, 1000.0) == pytest.approx(5000.0, rel=0.02)
    assert min(found) > 0


def test_flops_take_time_even_if_only_tiny_runs_have_finished():
    tiny = [Duration(steps, 1e-3, 5 + 0.2 * steps) for steps in (100, 200, 400)]
    assert speed_of(tiny).seconds(400, 1000.0) > 500
