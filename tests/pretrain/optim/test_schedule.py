"""The learning rate by tokens."""

import pytest

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan
from pretrain.config import OptimConfig
from pretrain.optim.schedule import learning_rate, run_rate
from pretrain.recipe import StageRate, TrainingRecipeConfig, TrainingStageConfig

DANUBE = OptimConfig(learning_rate=2e-4, min_learning_rate=1e-5, warmup_tokens=1000)


def test_danubes_shape():
    assert run_rate(DANUBE, 500, 11_000) == pytest.approx(1e-4)
    assert run_rate(DANUBE, 1000, 11_000) == pytest.approx(2e-4)
    assert run_rate(DANUBE, 6000, 11_000) == pytest.approx((2e-4 + 1e-5) / 2)
    assert run_rate(DANUBE, 11_000, 11_000) == pytest.approx(1e-5)


def test_it_only_falls_after_the_warm_up():
    rates = [run_rate(DANUBE, tokens, 11_000) for tokens in range(1000, 11_001, 100)]
    assert rates == sorted(rates, reverse=True)


def test_linear_and_constant():
    linear = OptimConfig(learning_rate=1.0, schedule="linear")
    assert run_rate(linear, 25, 100) == pytest.approx(0.75)
    constant = OptimConfig(learning_rate=1.0, schedule="constant", warmup_tokens=10)
    assert [run_rate(constant, t, 100) for t in (5, 10, 100)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "halfway"), [("linear", 0.55), ("cosine", 0.55), ("sqrt", 1 - 0.9 * 0.5**0.5)]
)
def test_warm_up_stable_decay(shape, halfway):
    config = OptimConfig(
        learning_rate=1.0,
        min_learning_rate=0.1,
        warmup_tokens=10,
        schedule="wsd",
        decay_tokens=20,
        decay_shape=shape,
    )
    rates = [run_rate(config, t, 100) for t in (5, 10, 50, 80, 90, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, halfway, 0.1])
    # The end moves, the stable part stays as it was.
    assert run_rate(config, 50, 200) == 1.0


def test_bad_settings_are_refused():
    with pytest.raises(
        InputError, match=r"optim.schedule=cosin: unknown choice \(did you mean 'cos"
    ):
        OptimConfig(learning_rate=1.0, schedule="cosin")
    with pytest.raises(
        InputError, match=r"optim.decay_tokens=0: expected .* with optim.schedule=wsd"
    ):
        OptimConfig(learning_rate=1.0, schedule="wsd")
    with pytest.raises(
        InputError, match=r"optim.decay_tokens=5: expected .* with optim.schedule=cosine"
    ):
        OptimConfig(learning_rate=1.0, decay_tokens=5)
    with pytest.raises(InputError, match=r"optim.min_learning_rate=2.0: expected at most"):
        OptimConfig(learning_rate=1.0, min_learning_rate=2.0)


def plan_of(*stages):
    named = {f"s{number}": stage for number, stage in enumerate(stages)}
    return StagePlan(TrainingRecipeConfig("r", 100, named), {"a": 1000})


def test_a_stage_has_a_rate_of_its_own():
    """A constant stage keeps the rate before it, a falling one continues from it.

    Stages without a rate follow the run's.
    """
    plan = plan_of(
        TrainingStageConfig(10, 1000),
        TrainingStageConfig(10, 1000, learning_rate=StageRate("constant")),
        TrainingStageConfig(10, 1000, learning_rate=StageRate("linear", end=0.0)),
        TrainingStageConfig(10, 1000, learning_rate=StageRate("cosine", start=1.0, end=0.5)),
        TrainingStageConfig(10, 1000),
    )
    run = OptimConfig(learning_rate=2.0, schedule="linear")
    rates = [learning_rate(run, plan, tokens) for tokens in range(500, 5001, 500)]
    assert rates == pytest.approx([1.8, 1.6, 1.6, 1.6, 0.8, 0.0, 0.75, 0.5, 0.2, 0.0])


def test_the_first_stage_starts_at_the_runs_top():
    plan = plan_of(TrainingStageConfig(10, 1000, learning_rate=StageRate("linear", end=0.0)))
    assert learning_rate(OptimConfig(learning_rate=2.0), plan, 500) == 1.0
