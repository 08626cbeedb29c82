"""The study of learning rates: its runs, and what follows from their losses."""

from __future__ import annotations

import math

import pytest

from conf.errors import InputError
from launch.studies.config import kind_of
from launch.studies.kind import RunResult

KEYS = {
    "kind": "rates",
    "rates": [0.004, 0.008, 0.016, 0.032],
    "hidden_sizes": [128],
    "num_layers": [4],
    "parametrizations": ["completep", "standard"],
    "seeds": [0, 1],
    "coordinate_steps": 0,
}


def results(runs, best):
    """Results whose optimum is best(parametrization, hidden_size, num_layers)."""
    found = []
    for run in runs:
        values = run.values
        optimum = best(values["parametrization"], values["hidden_size"], values["num_layers"])
        loss = 2 + 0.1 * math.log2(values["learning_rate"] / optimum) ** 2
        loss += 1e-3 * (values["seed"] - 0.5)
        found.append(RunResult(run, 1, 1, 1, 1.0, 1.0, loss))
    return found


def test_runs_have_the_shape_the_parametrization_and_the_rate(base):
    study = kind_of(KEYS)
    runs = study.runs(base, [])
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 3 * 4
    models = {
        (run.values["parametrization"], model.hidden_size, model.num_layers): model
        for run in runs
        for model in [base.model(run.overrides)]
    }
    plain = base.model()
    assert models["standard", 64, 2] == plain
    wide, deep = models["completep", 128, 2], models["completep", 64, 4]
    assert (wide.num_heads, wide.head_dim) == (2 * plain.num_heads, plain.head_dim)
    assert wide.intermediate_size == 2 * plain.intermediate_size
    for model in (wide, deep):
        assert (model.base_hidden_size, model.base_num_layers) == (64, 2)
    optim = base.settings(runs[-1].overrides).optim
    lowest = base.settings().optim.min_learning_rate / base.settings().optim.learning_rate
    assert optim.learning_rate == 0.032
    assert optim.min_learning_rate == pytest.approx(0.032 * lowest)


def test_the_decision_names_the_rate_and_how_far_it_moves(base):
    study = kind_of(KEYS)

    def best(kind, width, depth):
        return 0.012 if kind == "completep" else 0.012 * 64 / width

    found = study.finding(base, results(study.runs(base, []), best))
    assert found.decision.startswith("Use optim.learning_rate=0.012 (0.01")
    assert "with model.parametrization=completep: over 3 sizes its optimum is" in found.decision
    assert "steady, it moves by a factor of 1.00 (2.00 with standard)." in found.decision
    assert found.numbers["drift"] == pytest.approx({"completep": 1.0, "standard": 2.0})
    assert [len(table.rows) for table in found.tables] == [6]
    assert len(found.figures) == 2


def test_a_range_without_the_optimum_is_said(base):
    study = kind_of(KEYS | {"parametrizations": ["standard"]})
    runs = study.runs(base, [])
    found = study.finding(base, results(runs, lambda kind, width, depth: 0.1))
    assert found.decision.startswith("The rates do not contain the optimum of 64 x 2, 128 x 2")


def test_the_page_has_the_coordinate_check(base):
    study = kind_of(KEYS | {"coordinate_steps": 1, "parametrizations": ["completep"]})
    runs = study.runs(base, [])
    found = study.finding(base, results(runs, lambda kind, width, depth: 0.01))
    titles = [figure.drawing.title for figure in found.figures[1:]]
    assert titles == [
        f"Coordinate check over {x}, completep" for x in ("hidden_size", "num_layers")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.1, 0.2]}, "study.rates=.0.1, 0.2.: expected three or more"),
        ({"parametrizations": ["mup"]}, "study.parametrizations=mup"),
        ({"hidden_sizes": [100]}, "model.hidden_size=100: expected a width at which"),
    ],
)
def test_wrong_keys_are_refused(changes, message, base):
    with pytest.raises(InputError, match=message):
        kind_of(KEYS | changes).runs(base, [])
