"""The study `ladder`: its runs, and what it says about results of a known law."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from conf.errors import InputError
from launch.studies.base_command import BaseCommand
from launch.studies.commands import commands_of
from launch.studies.config import cluster_of, kind_of
from launch.studies.fits.scaling_law import Law
from launch.studies.kind import FIT, TARGET, TRUNK, RunResult, SourceLoss, StudyRun
from launch.studies.ladder.shapes import count
from pretrain.forecast import read_forecast

LAW = Law(E=1.8, A=60.0, a=0.4, B=150.0, b=0.35)
SHAPE = [
    *("model.hidden_size=64", "model.intermediate_size=176", "model.num_layers=8"),
    *("model.num_heads=8", "model.num_kv_heads=8", "model.head_dim=8"),
    *("recipe.stages.short.tokens=4194304", "data.max_epochs=1000"),
]


@pytest.fixture
def large(overrides, tmp_path) -> BaseCommand:
    """The command of a target of 420k parameters."""
    return BaseCommand([*overrides, *SHAPE], tmp_path / "study", cluster_of("laptop", 1, 1))


def ladder(**keys):
    few = {"size_step": 1.6, "tokens_per_parameter": 5, "draws": 40}
    return kind_of({"kind": "ladder"} | few | keys)


def result(run: StudyRun, tokens: int, noise: float = 0.0) -> RunResult:
    """Returns the result of a run by the law; a score rises as the loss falls."""
    size = float(run.values["size"])
    loss = float(LAW.loss(size, tokens) * np.exp(noise))
    score = 0.25 + 0.5 / (1 + np.exp(4 * (loss - 3.2)))
    sources = {"code": SourceLoss(loss, loss / 0.7), "prose": SourceLoss(1.1 * loss, None)}
    tasks = {"quiz": {"acc": float(score)}}
    return RunResult(run, int(size), int(size), tokens, 1.0, 1.0, loss, sources, tasks)


def results(study, base: BaseCommand, noise: float = 1e-3) -> list[RunResult]:
    random = np.random.default_rng(0)
    runs = [run for run in study.runs(base, []) if run.role != TRUNK]
    return [result(r, int(r.values["budget"]), noise * random.standard_normal()) for r in runs]


def test_each_size_has_a_trunk_and_one_branch_per_budget(large):
    runs = ladder(target_seeds=[0, 1]).runs(large, [])
    assert [run.role for run in runs] == 4 * [TRUNK, *3 * [FIT]] + [TARGET, TARGET]
    assert len({run.name for run in runs}) == len(runs)
    assert len({run.values["size"] for run in runs}) == 5
    chosen = [*runs[4:8], runs[-1]]  # composing a command takes time
    commands = commands_of(large, chosen)
    for run in chosen:
        settings = commands[run.name].settings
        batch = settings.recipe.global_batch_tokens
        if run.role == FIT:
            assert abs(commands[run.name].plan.total_tokens - run.values["budget"]) <= batch
            last = settings.recipe.stages["decay"].learning_rate
            assert (last.shape, last.end) == ("sqrt", 0)
        elif run.role == TRUNK:
            assert settings.optim.schedule == "constant"
        else:
            assert settings.optim.schedule == "wsd"
            assert settings.model == large.model()


def test_the_forecast_is_that_of_the_law(large, tmp_path):
    study = ladder()
    found = study.finding(large, results(study, large))
    forecast = found.numbers["forecast"]
    target = LAW.loss(float(count(large.model())), forecast["tokens"])
    assert forecast["loss"]["value"] == pytest.approx(target, rel=0.01)
    assert forecast["loss"]["low"] < target < forecast["loss"]["high"]
    assert set(forecast["sources"]) == {"code", "prose"}
    assert "bits_per_byte" not in forecast["sources"]["prose"]
    assert forecast["tasks"]["quiz"]["value"] > 0.5
    assert found.decision.startswith(("Train the target as it is", "Train "))
    assert found.figures[0].drawing.title == "Held-out loss by tokens"
    assert [table.title for table in found.tables] == [
        "Constants of the law",
        "Forecast by source",
        "Forecast of scores",
    ]
    json.dumps(found.numbers)
    for name, content in found.files.items():
        (tmp_path / name).write_text(content)
    assert read_forecast(str(tmp_path)) == forecast


def test_a_budget_has_a_best_size(large):
    study = ladder(flops=1e13)
    found = study.finding(large, results(study, large, noise=1e-4))
    best = found.numbers["best_size"]
    assert best["flops"] == 1e13
    assert best["low"] < best["value"] < best["high"]
    assert found.decision.startswith("For 1e+13 FLOPs, train about ")


def test_the_target_is_compared_after_it_was_trained(large):
    study = ladder(target_seeds=[0, 1, 2])
    found = study.finding(large, results(study, large))
    numbers = found.numbers["target"]
    assert len(numbers["losses"]) == 3
    assert abs(numbers["relative_error"]) < 0.01
    assert found.facts[0].startswith("The target was trained: ")
    assert "reached" in found.tables[1].columns


def test_seeds_that_differ_widen_the_interval(large):
    study = ladder(seeds=[0, 1])
    calm, noisy = (study.finding(large, results(study, large, noise)) for noise in (1e-4, 1e-2))
    widths = [f.numbers["forecast"]["loss"] for f in (calm, noisy)]
    assert widths[1]["high"] - widths[1]["low"] > 10 * (widths[0]["high"] - widths[0]["low"])


def test_losses_that_do_not_flatten_are_said(large):
    study = ladder()
    straight = [
        replace(one, loss=30 * float(one.run.values["size"]) ** -0.1 * one.tokens**-0.05)
        for one in results(study, large)
    ]
    said = "The losses do not flatten yet (E is 0)"
    assert any(fact.startswith(said) for fact in study.finding(large, straight).facts)
    ordinary = study.finding(large, results(study, large))
    assert not any(fact.startswith(said) for fact in ordinary.facts)


def test_too_few_results_say_what_is_missing(large):
    study = ladder()
    with pytest.raises(InputError, match=r"study: 3 runs, and the law needs 6"):
        study.finding(large, results(study, large)[:3])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"multiples": [1, 2]}, "study.multiples: found 2. The law needs at least 3."),
        ({"rule": "mine"}, "study.rule=mine"),
        ({"decay_fraction": 1.0}, "study.decay_fraction=1.0: expected"),
        ({"size_step": 1.0}, "study.size_step=1.0, study.gap=4.0: expected"),
    ],
)
def test_wrong_keys_are_named(keys, message):
    with pytest.raises(InputError, match=message):
        ladder(**keys)


def test_a_small_target_with_few_heads_has_too_few_sizes(base):
    with pytest.raises(InputError, match="too few for the shape of the target"):
        ladder().runs(base, [])
    with pytest.raises(InputError, match="only 1 different models have the shape of the target"):
        ladder(sizes=[30_000, 30_001, 30_002]).runs(base, [])
