"""A study starts what is missing and only that, whatever happened before."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from conf.errors import EXIT_GAVE_UP, EXIT_REQUEUE, InputError, RunAborted
from launch.studies.command import study as study_command
from launch.studies.config import StudyConfig
from launch.studies.page import render_study
from launch.studies.record import MAX_STARTS
from launch.studies.tables import write_results
from tests.launch.studies.conftest import write_run


class Place:
    """Runs whose end is decided beforehand: a loss, or steps and an exit code."""

    def __init__(self, ends=None):
        self.ends = ends or {}
        self.started, self.most, self.running = [], 0, {}

    def active(self, names):
        return set(self.running)

    def start(self, command):
        self.started.append(command.run.name)
        self.running[command.run.name] = command
        self.most = max(self.most, len(self.running))
        return "here"

    def wait(self):
        name, command = next(iter(self.running.items()))
        del self.running[name]
        ends = self.ends.get(name, [])
        end = ends.pop(0) if ends else 3.0
        if isinstance(end, float):
            write_run(command, end)
            return {name: (0, "")}
        steps, code = end
        write_run(command, 0.0, steps)
        return {name: (code, "it broke")}

    def stop(self):
        pass


def run(study, place, jobs=1, wait=True):
    study.run(place, jobs, wait)
    return place.started


def table(study):
    write_results(study)
    with (study.folder / "table.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


RATES = {"vary": ["optim.learning_rate=0.001,0.002,0.003"]}
NAMES = [f"learning_rate_0.00{n}" for n in (1, 2, 3)]


def test_it_runs_each_once_and_then_only_what_was_added(make):
    place = Place({NAMES[1]: [2.5]})
    first = make(**RATES)
    assert run(first, place, jobs=2) == NAMES
    assert place.most == 2
    assert run(make(**RATES), Place()) == []
    more = make(vary=["optim.learning_rate=0.001,0.004,0.002,0.003"])
    assert run(more, Place({"learning_rate_0.004": [2.75]})) == ["learning_rate_0.004"]
    assert [table(more)[name]["loss"] for name in NAMES] == ["3.0", "2.5", "3.0"]
    page = render_study(more)
    assert page.index("learning_rate=0.002 is best") < page.index("<h1>")
    took = pytest.approx(9.0, rel=0.02)  # of the finished runs, from the first step to the last
    assert more.planned()[NAMES[0]].seconds == took


def test_a_run_that_was_killed_continues_and_the_table_is_the_same(make):
    killed = Place({NAMES[0]: [(5, 137), (8, 137), 3.0], NAMES[2]: [(3, EXIT_REQUEUE), 3.5]})
    study = make(**RATES)
    assert run(study, killed) == [NAMES[0], NAMES[0], NAMES[0], NAMES[1], NAMES[2], NAMES[2]]
    assert table(study)[NAMES[2]]["cause"] == "finished"


def test_a_run_that_fails_for_good_does_not_end_the_study(make):
    stuck, gone = (5, 137), (2, EXIT_GAVE_UP)
    place = Place({NAMES[0]: [stuck] * MAX_STARTS, NAMES[1]: [gone]})
    study = make(**RATES)
    assert run(study, place) == [NAMES[0]] * MAX_STARTS + NAMES[1:]
    assert study.failed == NAMES[:2]
    assert table(study)[NAMES[1]]["code"] == str(EXIT_GAVE_UP)
    assert f"Run {NAMES[0]} failed with exit code 137 (it broke)" in render_study(study)
    again = make(**RATES)
    assert run(again, Place()) == []
    again.records.forget_failures()
    assert run(again, Place()) == NAMES[:2]


def test_branches_wait_for_the_checkpoint_of_their_trunk(make):
    keys = {"vary": ["optim.learning_rate=0.001"], "budgets": [12_000, 20_000]}
    study = make(**keys)
    started = run(study, Place(), jobs=3)
    assert started == [f"{NAMES[0]}-{end}" for end in ("trunk", "12000", "20000")]
    curve = study.results[2].curve
    assert [tokens for tokens, _ in curve] == [20_480]


def test_branches_of_a_trunk_that_failed_fail_too(make):
    place = Place({f"{NAMES[0]}-trunk": [(3, EXIT_GAVE_UP)]})
    study = make(vary=["optim.learning_rate=0.001"], budgets=[12_000])
    assert run(study, place) == [f"{NAMES[0]}-trunk"]
    assert len(study.failed) == 2


def test_other_settings_in_a_run_folder_are_refused_by_name(make, base):
    run(make(**RATES), Place())
    base.overrides = (*base.overrides, "optim.weight_decay=0.5")
    with pytest.raises(InputError, match=f"run {NAMES[0]} was made with other settings .optim.wei"):
        make(**RATES).look()


def test_more_than_the_budget_is_refused(make):
    with pytest.raises(InputError, match=r"study.budget_hours=1e-05: the 3 runs .* need about"):
        make(**RATES, budget_hours=1e-5).look()
    with pytest.raises(InputError, match=r"study.budget_flops=1e\+06: .* FLOPs"):
        make(**RATES, budget_flops=1e6).look()


def test_without_waiting_the_next_call_continues(make, tmp_path):
    place = Place()
    with pytest.raises(RunAborted, match="3 of 3 runs have not ended") as ended:
        run(make(**RATES), place, jobs=2, wait=False)
    assert ended.value.exit_code == EXIT_REQUEUE
    assert place.started == NAMES[:2]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("")
    config = StudyConfig(study={"kind": "grid"}, out=str(tmp_path))
    with pytest.raises(InputError, match="the folder holds no study"):
        study_command(config)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["letter.txt"]
