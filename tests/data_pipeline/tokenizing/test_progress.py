"""The progress of unfinished preparations, of one process and of several jobs."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from data_pipeline.tokenizing import progress
from data_pipeline.tokenizing.progress import find_work, read_progress
from data_pipeline.tokenizing.tokenize import tokenize

NOW = 1_000_000.0
SIZES = [4_000_000, 2_000_000, 2_000_000, 2_000_000]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Makes a work folder, given the times at which tasks of each phase ended, before NOW."""
    monkeypatch.setattr(progress.time, "time", lambda: NOW)

    def make(began: float, jobs: int = 0, sizes=SIZES, **phases: dict[int, float]):
        folder = tmp_path / "data" / "web.partial"
        folder.mkdir(parents=True, exist_ok=True)
        names = ["scan", "match", "merge", "prepare", "encode"]
        content = {"phases": names, "unit_bytes": sizes}
        (folder / "outline.json").write_text(json.dumps(content))
        for name, count in {"match": 4, "merge": 2, "prepare": 1}.items():
            if name in phases:
                (folder / f"{name}.tasks").write_text(str(count))
        for name in ("lock", *(f"lock-{rank}" for rank in range(jobs))):
            (folder / name).touch()
        (folder / "plan.json").write_text("{}")
        os.utime(folder / "plan.json", (NOW - began, NOW - began))
        for phase, tasks in phases.items():
            (folder / phase).mkdir(exist_ok=True)
            for task, ago in tasks.items():
                marker = folder / phase / f"{task:06}.json"
                marker.write_text("{}")
                os.utime(marker, (NOW - ago, NOW - ago))
                (folder / phase / f"{task:06}.npy").touch()  # tables are not markers
        return folder

    return make


def test_a_phase_in_progress(work):
    folder = work(30, 2, scan={0: 10.0, 2: 15.0})
    found = read_progress(folder)
    assert (found.phase, found.done, found.jobs) == ("scan", 0.6, 2)
    assert found.bytes_per_second == pytest.approx(6e6 / 20)
    assert found.seconds_left == pytest.approx(4e6 / (6e6 / 20))
    assert found.is_active
    assert found.out.name == "web"
    assert find_work(folder.parent) == find_work(folder) == find_work(folder.parent.parent)


def test_a_phase_whose_first_task_is_not_done(work):
    found = read_progress(work(30))
    assert (found.phase, found.done, found.bytes_per_second) == ("scan", 0.0, None)
    assert (found.seconds_left, found.jobs, found.is_active) == (None, 1, True)


def test_tasks_that_compare_have_no_bytes(work):
    done = dict.fromkeys(range(4), 100.0)
    found = read_progress(work(200, scan=done, match={}))
    assert (found.phase, found.done) == ("match", 0.0)
    found = read_progress(work(200, scan=done, match={0: 90.0, 1: 80.0, 2: 70.0}))
    assert (found.phase, found.done, found.bytes_per_second) == ("match", 0.75, None)
    assert found.seconds_left == pytest.approx(10.0)


def test_later_phases_and_the_end(work):
    done = dict.fromkeys(range(4), 100.0)
    phases = {"scan": done, "match": done, "merge": dict.fromkeys(range(2), 60.0)}
    found = read_progress(work(200, **phases, prepare={0: 50.0}, encode={1: 40.0}))
    assert (found.phase, found.done) == ("encode", 0.2)
    assert found.bytes_per_second == pytest.approx(2e6 / 10)
    found = read_progress(work(200, encode=dict.fromkeys(range(4), 5.0)))
    assert (found.phase, found.done) == ("manifest", 1.0)


def test_the_speed_after_a_break_is_that_since_the_break(work):
    found = read_progress(work(90_000, scan={0: 86_000.0, 1: 30.0, 2: 20.0}))
    assert found.bytes_per_second == pytest.approx(2e6 / 10)
    assert found.is_active


def test_work_that_has_ended_is_not_active(work):
    assert not read_progress(work(9000, scan={0: 8000.0})).is_active
    long_tasks = work(9000, scan={0: 5000.0, 1: 1200.0})  # one in 4000 s
    assert read_progress(long_tasks).is_active


def test_jobs_that_are_half_done(configure, texts, tmp_path):
    """Real jobs: after one of two, its share of the first phase is done."""
    config = configure(texts, tmp_path / "out")
    tokenize(replace(config, rank=1, world=2))
    found = read_progress(tmp_path / "out.partial")
    outline = json.loads((tmp_path / "out.partial" / "outline.json").read_text())
    sizes = outline["unit_bytes"]
    assert outline["phases"] == ["scan", "match", "merge", "prepare", "encode"]
    assert (found.phase, found.jobs) == ("scan", 1)
    assert found.done == pytest.approx(sum(sizes[1::2]) / sum(sizes))
    tokenize(replace(config, rank=0, world=2))
    found = read_progress(tmp_path / "out.partial")
    assert found.phase != "scan"
    assert found.jobs == 2
