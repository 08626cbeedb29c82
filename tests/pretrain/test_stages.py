"""Plans of recipes in steps and samples."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError
from data_pipeline.sampling.recipe import (
    TRAINING_KEYS,
    BatchRamp,
    StageConfig,
    StagePlan,
    plan_from_mapping,
)
from pretrain.checks import check_stages
from pretrain.config import ParallelConfig
from pretrain.recipe import StageRate, TrainingRecipeConfig, TrainingStageConfig

SOURCES = {"web": 3_000_000, "code": 1_000_000}


def recipe(**stages: TrainingStageConfig) -> TrainingRecipeConfig:
    return TrainingRecipeConfig(name="r", global_batch_tokens=4096, stages=stages)


def test_danubes_trillion():
    stages = {
        f"s{seq_len}": TrainingStageConfig(seq_len, tokens)
        for seq_len, tokens in ((2048, 7 * 10**11), (4096, 10**11), (8192, 10**11), (16384, 10**11))
    }
    plan = StagePlan(TrainingRecipeConfig("danube", 1_179_648, stages), {"web": 10**12})
    assert [level.samples_per_step for level in plan.levels] == [576, 288, 144, 72]
    assert plan.total_steps == pytest.approx(847_700, rel=1e-3)
    assert plan.batches == [1_179_648]


def test_steps_belong_to_stages_without_a_gap():
    plan = StagePlan(
        recipe(a=TrainingStageConfig(512, 10_000), b=TrainingStageConfig(1024, 8192)), SOURCES
    )
    assert [(s.first_step, s.end_step) for s in plan.stages] == [(0, 3), (3, 5)]
    assert [plan.at(step).name for step in range(5)] == ["a", "a", "a", "b", "b"]
    assert plan.total_tokens == 5 * 4096


RAMP = BatchRamp(start=1024, increment=1024, tokens=9216)


def test_a_ramp_gives_every_size_its_share():
    plan = StagePlan(recipe(a=TrainingStageConfig(512, 20_000, batch_ramp=RAMP)), SOURCES)
    assert [(x.steps, x.tokens_per_step) for x in plan.levels] == [
        (3, 1024),
        (2, 2048),
        (1, 3072),
        (3, 4096),
    ]
    assert plan.batches == [1024, 2048, 3072, 4096]
    assert plan.total_tokens == 3 * 1024 + 2 * 2048 + 3072 + 3 * 4096


@given(
    budgets=st.lists(st.integers(1, 60_000), min_size=1, max_size=4),
    ramps=st.lists(st.sampled_from([BatchRamp(), RAMP, BatchRamp(2048, 2048, 5000)]), min_size=4),
    batches=st.lists(st.sampled_from([None, 8192]), min_size=4),
)
def test_steps_take_all_samples_of_a_plan_in_order(budgets, ramps, batches):
    """Every sample is in one step, tokens add up, and `step_of` inverts `samples_at`."""
    stages = {
        f"s{number}": TrainingStageConfig(
            512 * 2 ** (number % 2),
            tokens,
            batch_ramp=ramps[number],
            global_batch_tokens=batches[number],
        )
        for number, tokens in enumerate(budgets)
    }
    plan = StagePlan(recipe(**stages), SOURCES)
    taken, tokens = {stage.index: 0 for stage in plan.stages}, 0
    for step in range(plan.total_steps):
        stage, samples = plan.at(step), plan.samples_at(step)
        assert stage.first_step <= step < stage.end_step
        assert samples.start == taken[stage.index]
        assert plan.tokens_at(step) == tokens
        assert plan.batch_tokens(step) == len(samples) * stage.seq_len
        assert {plan.step_of(stage.index, s) for s in (samples[0], samples[-1])} == {step}
        taken[stage.index], tokens = samples.stop, tokens + plan.batch_tokens(step)
        assert plan.position(step + 1) == (stage.index, samples.stop)
    assert plan.tokens_at(plan.total_steps) == plan.total_tokens == tokens
    for stage, budget in zip(plan.stages, budgets, strict=True):
        assert taken[stage.index] == stage.samples
        assert budget <= stage.tokens < budget + 8192


def test_a_stage_that_ends_early_keeps_the_steps_that_it_took():
    long = StagePlan(recipe(a=TrainingStageConfig(512, 30_000, batch_ramp=RAMP)), SOURCES)
    ended = TrainingStageConfig(512, long.tokens_at(4), batch_ramp=RAMP, planned_tokens=30_000)
    short = StagePlan(recipe(a=ended, b=TrainingStageConfig(512, 8192)), SOURCES)
    assert [short.samples_at(s) for s in range(4)] == [long.samples_at(s) for s in range(4)]
    assert short.at(4).name == "b"
    assert short.stages[0].planned_samples == long.stages[0].samples


def test_without_a_mixture_the_sources_weigh_their_tokens():
    plan = StagePlan(recipe(a=TrainingStageConfig(512, 4096)), SOURCES)
    assert plan.stages[0].weights == {"web": 3_000_000, "code": 1_000_000}


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (
            TrainingStageConfig(512, 1, {"wbe": 1.0}),
            r"has no source 'wbe'.*\(did you mean 'web'\?\)",
        ),
        (TrainingStageConfig(512, 1, {"web": -1.0}), "mixture.web=-1.0: expected 0 or more"),
        (TrainingStageConfig(512, 1, {"web": 0.0}), "all weights are 0"),
        (
            TrainingStageConfig(500, 1),
            "global_batch_tokens=4096: expected a multiple of recipe.stages.a.seq_len",
        ),
        (
            TrainingStageConfig(8192, 1),
            "global_batch_tokens=4096: expected a multiple of recipe.stages.a.seq_len",
        ),
        (
            TrainingStageConfig(512, 1, global_batch_tokens=700),
            r"recipe.stages.a.global_batch_tokens=700: expected a multiple of",
        ),
        (
            TrainingStageConfig(512, 1, batch_ramp=BatchRamp(1024, 1000, 9000)),
            r"a.batch_ramp: steps of increment=1000 from start=1024 do not reach recipe",
        ),
        (
            TrainingStageConfig(512, 1, batch_ramp=BatchRamp(3840, 128, 9000)),
            r"a.batch_ramp: a batch of 3840 tokens is not a multiple of",
        ),
    ],
)
def test_impossible_stages_are_refused(stage, sentence):
    with pytest.raises(InputError, match=sentence):
        StagePlan(recipe(a=stage), SOURCES)


def test_an_empty_recipe_is_refused():
    with pytest.raises(InputError, match=r"recipe.stages is empty"):
        recipe()
    with pytest.raises(InputError, match=r"recipe.stages.a.tokens=0: expected 1 or more"):
        recipe(a=TrainingStageConfig(512, 0))
    with pytest.raises(InputError, match=r"recipe.stages.a.batch_ramp.start=0: expected 1 or"):
        recipe(a=TrainingStageConfig(512, 1, batch_ramp=BatchRamp(0, 1, 1)))
    with pytest.raises(
        InputError, match=r"a.learning_rate.end=null: expected a rate with .*shape=linear"
    ):
        recipe(a=TrainingStageConfig(512, 1, learning_rate=StageRate("linear")))
    with pytest.raises(InputError, match=r"shape=linaer: unknown choice \(did you mean 'linear'"):
        recipe(a=TrainingStageConfig(512, 1, learning_rate=StageRate("linaer", end=0.0)))
    with pytest.raises(
        InputError, match=r"a.learning_rate.shape=null: requires start and end to be null"
    ):
        recipe(a=TrainingStageConfig(512, 1, learning_rate=StageRate(end=0.0)))


@pytest.mark.parametrize(
    ("micro", "cp", "tp", "longest", "sentence"),
    [
        (
            768,
            1,
            1,
            2048,
            "micro_batch_tokens=768: expected a multiple of recipe.stages.a.seq_len=512",
        ),
        (512, 1, 3, 2048, "seq_len=512: expected a multiple of parallel.tp=3"),
        (512, 3, 1, 2048, "seq_len=512: expected a multiple of 2 x parallel.cp=3 x parallel.tp=1"),
        (512, 1, 1, 256, "seq_len=512: expected at most model.max_seq_len=256"),
    ],
)
def test_batches_that_cannot_be_dealt_out_are_refused(micro, cp, tp, longest, sentence):
    plan = StagePlan(recipe(a=TrainingStageConfig(512, 4096)), SOURCES)
    check_stages(plan, ParallelConfig(micro_batch_tokens=2048), 2048)
    with pytest.raises(InputError, match=sentence):
        check_stages(plan, ParallelConfig(micro_batch_tokens=micro, tp=tp, cp=cp), longest)


@pytest.mark.parametrize(
    ("name", "trillions", "web"),
    [
        ("danube_1t", 1.0, []),
        ("danube2", 2.0, [0.845, 0.728, 0.555]),
        ("danube3_4b", 6.0, [0.906, 0.817, 0.516]),
        ("danube3_500m", 4.0, [0.906, 0.817, 0.516]),
        ("continued", 0.01, []),
    ],
)
def test_recipes_of_the_model_family(name, trillions, web):
    stated = OmegaConf.load(CONF_DIR / "recipe" / f"{name}.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(TrainingRecipeConfig), stated)
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, TrainingRecipeConfig)
    plan = StagePlan(recipe, {"web": 10**13, "other": 10**12})
    assert plan.total_tokens == pytest.approx(trillions * 1e12, rel=1e-4)
    if web:
        assert [stage.weights["web"] for stage in plan.stages] == web
        assert all(sum(s.weights.values()) == pytest.approx(1) for s in plan.stages)


def test_the_data_pipeline_ignores_the_keys_of_training():
    added = {field.name for field in fields(TrainingStageConfig)}
    assert added - {field.name for field in fields(StageConfig)} == set(TRAINING_KEYS)
    stage = {"seq_len": 64, "tokens": 128, "precision": "fp8", "learning_rate": {"shape": "x"}}
    recipe = {"global_batch_tokens": 64, "stages": {"a": stage}}
    assert plan_from_mapping(recipe, {"web": 1000}).total_steps == 2
    with pytest.raises(InputError, match=r"recipe: Key 'mixtrue' not in"):
        plan_from_mapping(recipe | {"stages": {"a": stage | {"mixtrue": {}}}}, {"web": 1000})
