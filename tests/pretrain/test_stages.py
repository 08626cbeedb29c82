"""The plan of a recipe."""

import pytest
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError
from pretrain.config import ParallelConfig, RecipeConfig, StageConfig
from pretrain.loader import check_batches
from pretrain.stages import StagePlan

SOURCES = {"web": 3_000_000, "code": 1_000_000}


def recipe(**stages: StageConfig) -> RecipeConfig:
    return RecipeConfig(name="r", global_batch_tokens=4096, stages=stages)


def test_danubes_trillion():
    stages = {
        f"s{seq_len}": StageConfig(seq_len, tokens)
        for seq_len, tokens in ((2048, 7 * 10**11), (4096, 10**11), (8192, 10**11), (16384, 10**11))
    }
    plan = StagePlan(RecipeConfig("danube", 1_179_648, stages), {"web": 10**12})
    assert [stage.samples_per_step for stage in plan.stages] == [576, 288, 144, 72]
    assert plan.total_steps == pytest.approx(847_700, rel=1e-3)
    assert {stage.samples_per_step * stage.seq_len for stage in plan.stages} == {1_179_648}


def test_steps_belong_to_stages_without_a_gap():
    plan = StagePlan(recipe(a=StageConfig(512, 10_000), b=StageConfig(1024, 8192)), SOURCES)
    assert [(s.first_step, s.end_step) for s in plan.stages] == [(0, 3), (3, 5)]
    assert [plan.at(step).name for step in range(5)] == ["a", "a", "a", "b", "b"]
    assert plan.total_tokens == 5 * 4096


def test_without_a_mixture_the_sources_weigh_their_tokens():
    plan = StagePlan(recipe(a=StageConfig(512, 4096)), SOURCES)
    assert plan.stages[0].weights == {"web": 3_000_000, "code": 1_000_000}


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (StageConfig(512, 1, {"wbe": 1.0}), r"names the source 'wbe'.*\(did you mean 'web'\?\)"),
        (StageConfig(512, 1, {"web": -1.0}), "mixture.web=-1.0, expected 0 or more"),
        (StageConfig(512, 1, {"web": 0.0}), "has no weight above 0"),
        (
            StageConfig(500, 1),
            "global_batch_tokens=4096 is not a multiple of recipe.stages.a.seq_len",
        ),
        (
            StageConfig(8192, 1),
            "global_batch_tokens=4096 is not a multiple of recipe.stages.a.seq_len",
        ),
    ],
)
def test_impossible_stages_are_refused(stage, sentence):
    with pytest.raises(InputError, match=sentence):
        StagePlan(recipe(a=stage), SOURCES)


def test_an_empty_recipe_is_refused():
    with pytest.raises(InputError, match=r"recipe.stages is empty"):
        recipe()
    with pytest.raises(InputError, match=r"recipe.stages.a.tokens=0, expected at least 1"):
        recipe(a=StageConfig(512, 0))


@pytest.mark.parametrize(
    ("micro", "dp", "cp", "tp", "longest", "sentence"),
    [
        (
            4096,
            2,
            1,
            1,
            2048,
            r"global_batch_tokens=4096 is not divisible by .* 2 data-parallel ranks",
        ),
        (
            768,
            1,
            1,
            1,
            2048,
            "micro_batch_tokens=768 is not a multiple of recipe.stages.a.seq_len=512",
        ),
        (512, 1, 1, 3, 2048, "seq_len=512 is not divisible by parallel.tp=3"),
        (512, 1, 3, 1, 2048, "seq_len=512 is not divisible by 2 x parallel.cp=3 x parallel.tp=1"),
        (512, 1, 1, 1, 256, "seq_len=512 is above model.max_seq_len=256"),
    ],
)
def test_batches_that_cannot_be_dealt_out_are_refused(micro, dp, cp, tp, longest, sentence):
    plan = StagePlan(recipe(a=StageConfig(512, 4096)), SOURCES)
    check_batches(plan, ParallelConfig(micro_batch_tokens=2048), 2, 2048)
    with pytest.raises(InputError, match=sentence):
        check_batches(plan, ParallelConfig(micro_batch_tokens=micro, tp=tp, cp=cp), dp, longest)


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
    merged = OmegaConf.merge(OmegaConf.structured(RecipeConfig), stated)
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, RecipeConfig)
    plan = StagePlan(recipe, {"web": 10**13, "other": 10**12})
    assert plan.total_tokens == pytest.approx(trillions * 1e12, rel=1e-4)
    if web:
        assert [stage.weights["web"] for stage in plan.stages] == web
        assert all(sum(s.weights.values()) == pytest.approx(1) for s in plan.stages)
