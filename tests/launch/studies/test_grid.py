"""The plain kind: which of several values is best, and how certain that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import InputError
from launch.studies.base_command import BaseCommand
from launch.studies.config import cluster_of, kind_of, read_study
from launch.studies.kind import RunResult, StudyRun


def results(losses):
    """Results of runs with the given losses by learning rate, one per seed."""
    return [
        RunResult(
            StudyRun(f"{rate}-{seed}", (), {"rate": rate, "seed": seed}), 1, 1, 1, 1.0, 1.0, x
        )
        for rate, found in losses.items()
        for seed, x in enumerate(found)
    ]


def finding(losses):
    base = BaseCommand([], Path("study"), cluster_of("laptop", 1, 1))
    return kind_of({"kind": "grid"}).finding(base, results(losses))


def test_the_lowest_mean_wins_by_its_distance_in_standard_errors():
    found = finding({0.1: [3.0, 3.2], 0.2: [2.0, 2.2], 0.3: [4.0, 4.2]})
    # variance 0.02 between seeds, so the difference of two means of two has an error of 0.1414
    assert found.decision == (
        "rate=0.2 is best: its held-out loss of 2.1000 nats per token is 1.0000 lower than that of "
        "rate=0.1, 7.1 standard errors of that difference, more than noise."
    )
    assert found.numbers["comparisons"][0]["best"] == "rate=0.2"


def test_cases_are_compared_with_the_first_one():
    study = kind_of(
        {"kind": "grid", "cases": {"old": ["a=1"], "new": ["a=2", "b=3"]}, "seeds": [5]}
    )
    base = BaseCommand([], Path("study"), cluster_of("laptop", 1, 1))
    runs = study.runs(base, [])
    assert [run.overrides for run in runs] == [("a=1", "seed=5"), ("a=2", "b=3", "seed=5")]
    assert [run.values for run in runs] == [
        {"case": "old", "seed": 5},
        {"case": "new", "seed": 5},
    ]
    losses = {"old": [3.0, 3.2], "new": [2.0, 2.2], "newer": [2.1, 2.3]}
    found = study.finding(
        base,
        [
            RunResult(StudyRun(f"{x}{n}", (), {"case": x, "seed": n}), 1, 1, 1, 1.0, 9.0, loss)
            for x, of_case in losses.items()
            for n, loss in enumerate(of_case)
        ],
    )
    assert found.decision == (
        "case=new is best: its held-out loss of 2.1000 nats per token is 1.0000 lower than that of "
        "case=old, 7.1 standard errors of that difference, more than noise."
    )
    assert found.tables[0].rows[1] == ["case=newer", "2.2000", "-0.9000", "-6.4", "2", "1", "9"]


def test_the_first_case_may_be_the_best():
    study = kind_of({"kind": "grid", "cases": {"old": [], "new": ["a=2"]}})
    base = BaseCommand([], Path("study"), cluster_of("laptop", 1, 1))
    runs = zip(study.runs(base, []), (2.0, 3.0), strict=True)
    found = study.finding(base, [RunResult(run, 1, 1, 1, 1.0, 1.0, loss) for run, loss in runs])
    assert found.decision == "No case is better than case=old: its held-out loss is 2.0000."


def test_budgets_are_compared_each_on_its_own_and_the_largest_decides():
    losses = {("a", 1000): 3.0, ("b", 1000): 2.0, ("a", 4000): 1.5, ("b", 4000): 1.6}
    runs = [
        RunResult(StudyRun(f"{x}-{n}", (), {"x": x, "budget": n}), 1, 1, 1, 1.0, 1.0, loss)
        for (x, n), loss in losses.items()
    ]
    base = BaseCommand([], Path("study"), cluster_of("laptop", 1, 1))
    found = kind_of({"kind": "grid"}).finding(base, runs)
    assert found.decision.startswith("At 4k tokens, x=a is best: its held-out loss of 1.5000")
    assert found.facts[0].startswith("At 1k tokens, x=b is best")


def test_noise_is_called_noise():
    assert "not distinguishable from noise" in finding({1: [2.0, 3.0], 2: [2.1, 3.0]}).decision
    assert "one seed cannot distinguish" in finding({1: [2.0], 2: [2.1]}).decision


def test_a_file_completes_the_keys_of_its_kind(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("kind: grid\nseeds: [1, 2]\n")
    assert read_study(path)["decay_fraction"] == 0.2
    assert kind_of(read_study(path)).seeds == [1, 2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "gird"}, "study.kind=gird: unknown kind .did you mean 'grid'"),
        ({"kind": "grid", "vari": []}, "vari is not a key of this config"),
        ({"kind": "grid", "seeds": [1, 1]}, "expected different seeds"),
        ({"kind": "grid", "decay_fraction": 1.0}, "study.decay_fraction=1.0: expected"),
        ({"kind": "grid", "budget_hours": 0}, "study.budget_hours=0.0: expected more than 0"),
    ],
)
def test_wrong_keys_are_named(keys, message):
    with pytest.raises(InputError, match=message):
        kind_of(keys)


def test_nothing_finished_is_no_decision():
    with pytest.raises(InputError, match="no run has finished"):
        finding({})
