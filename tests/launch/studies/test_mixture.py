"""The kind mixture: its runs, the check that follows from their results, and the finding."""

from __future__ import annotations

import numpy as np
import pytest

from conf.errors import InputError
from launch.studies.config import kind_of
from launch.studies.kind import FIT, RunResult, SourceLoss
from launch.studies.kinds.mixture import OVERRIDES, Study


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are tested with the fits; here they only cost time."""
    monkeypatch.setattr("launch.studies.kinds.mixture.RESAMPLES", 4)


def make(**keys) -> Study:
    kind = kind_of({"kind": "mixture", "proxies": 6, "check_seeds": [7, 8], **keys})
    assert isinstance(kind, Study)
    return kind


def result(run, useful="prose", noise=0.0):
    """A result in which every held-out loss falls with the share of one source."""
    loss = 3.0 - float(run.values[useful]) + noise
    sources = {name: SourceLoss(loss, None) for name in ("code", "prose")}
    return RunResult(run, 1, 1, 1, 1.0, 1.0, loss, sources)


def test_the_check_follows_from_the_results_and_the_study_ends(base):
    study = make(target={"prose": 1})
    first = study.runs(base, [])
    assert [run.role for run in first] == [FIT] * 7
    natural = study.natural(base)
    assert first[0].values["code"] == pytest.approx(natural[0], abs=1e-4)
    found = [result(run) for run in first]
    second = study.runs(base, found)
    checks = second[7:]
    assert second[:7] == first
    assert len(checks) == len(study.later(base)) == 6
    assert {run.values["mixture"] for run in checks} == {"proposed", "natural", "uniform"}
    proposed = next(run for run in checks if run.values["mixture"] == "proposed")
    assert float(proposed.values["prose"]) > max(0.5, natural[1])
    found += [result(run) for run in checks]
    assert study.runs(base, found) == second
    settings = base.settings(proposed.overrides)
    mixture = settings.recipe.stages["short"].mixture
    assert mixture == {name: proposed.values[name] for name in ("code", "prose")}

    finding = study.finding(base, found)
    assert finding.decision.startswith("Train with code 0.")
    assert "lower than natural (more than noise)" in finding.decision
    assert base.settings(finding.files[OVERRIDES].split()).recipe.stages["short"].mixture
    assert finding.numbers["errors"][0] < 0.5 * finding.numbers["errors_of_mean"][0]


def test_seeds_of_one_mixture_are_one_point_of_the_fit(base):
    """Losses that only their own mixture explains are not predicted from its other seeds."""
    study = make(seeds=[0, 1, 2], proxies=12)
    runs = study.runs(base, [])
    drawn = list(dict.fromkeys(run.values["prose"] for run in runs))
    jumps = dict(zip(drawn, np.random.default_rng(0).standard_normal(len(drawn)), strict=True))
    found = [
        result(run, noise=float(run.values["prose"]) + jumps[run.values["prose"]]) for run in runs
    ]
    (one, *_) = study.proposal(base, found).regressions
    alone = found[: len(found) // 3]
    assert one.error == pytest.approx(study.proposal(base, alone).regressions[0].error)


def test_a_check_without_difference_is_called_noise(base):
    study = make()
    first = study.runs(base, [])
    found = [result(run) for run in first]
    checks = study.runs(base, found)[7:]
    noises = {("proposed", 7): 0.3, ("proposed", 8): -0.3}
    for run in checks:
        noise = noises.get((str(run.values["mixture"]), int(run.values["seed"])), 0.0)
        found.append(result(run, noise=noise - 3.0 + float(run.values["prose"])))
    assert "not distinguishable from noise" in study.finding(base, found).decision


def test_a_run_that_failed_leaves_the_other_pairs(base):
    study = make()
    found = [result(run) for run in study.runs(base, [])]
    checks = study.runs(base, found)[7:]
    kept = [run for run in checks if run.values["seed"] == 7]
    finding = study.finding(base, found + [result(run) for run in kept])
    assert "one seed, too few to compare" in finding.decision
    assert "no run has checked it yet" in study.finding(base, found).decision


def test_roles_of_sources(base):
    study = make(target={"code": 3, "prose": 1})
    one = result(study.runs(base, [])[0])
    assert study.importance(base, [one]) == {"code": 0.75, "prose": 0.25}
    assert make().importance(base, [one]) == {"code": 0.5, "prose": 0.5}
    with pytest.raises(InputError, match=r"no held-out source proze .did you mean 'prose'"):
        make(target={"proze": 1}).importance(base, [one])


def test_limits_of_the_text_are_limits_of_the_mixture(base):
    tokens = base.source_tokens
    target = 4 * tokens["code"] / 0.55  # four passes over code are 55% of this run
    study = make(target_tokens=target)
    assert study.largest(base)[0] == pytest.approx(0.55)
    assert all(float(run.values["code"]) <= 0.55 + 1e-4 for run in study.runs(base, []))
    with pytest.raises(InputError, match="4 passes over all sources are"):
        make(target_tokens=100 * sum(tokens.values())).runs(base, [])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"proxies": 3}, "study.proxies=3: expected 4 or more for 2 sources"),
        ({"stages": ["shrot"]}, "study.stages: no stage shrot .did you mean 'short'"),
    ],
)
def test_what_the_base_does_not_have_is_refused(base, keys, message):
    with pytest.raises(InputError, match=message):
        make(**keys).runs(base, [])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"check_seeds": [0]}, "study.check_seeds=.0.: expected seeds that study.seeds"),
        ({"target": {"a": -1.0}}, "expected weights of 0 or more"),
        ({"concentration": 0}, "study.concentration=0.0: expected more than 0"),
        ({"target_tokens": 0}, "study.target_tokens=0.0: expected more than 0"),
    ],
)
def test_wrong_keys_are_named(keys, message):
    with pytest.raises(InputError, match=message):
        make(**keys)
