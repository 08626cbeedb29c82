"""Models of other sizes with the target's shape, and the rules for their settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from conf.errors import InputError
from conf.overrides import CONF_DIR
from launch.studies.ladder.rules import RULES, settings_of
from launch.studies.ladder.shapes import FlopsBySize, aspect, count, overrides, shape_of
from model.config import ModelConfig
from model.flops import flops_per_token, parameters
from pretrain.config import OptimConfig, PretrainConfig
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig


def model(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((CONF_DIR / "model" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", ["danube_1_8b", "qwen3_0_6b", "olmo3_7b", "small_350m"])
@pytest.mark.parametrize("part", [4, 8, 16])
def test_the_shape_is_kept(name, part):
    large = model(name)
    small = shape_of(large, count(large) / part)
    assert count(small) == pytest.approx(count(large) / part, rel=0.4)  # heads are whole groups
    assert small.head_dim == large.head_dim
    assert small.num_heads / small.num_kv_heads == large.num_heads / large.num_kv_heads
    assert 1 / 1.7 < aspect(small) / aspect(large) < 1.7
    ratio = large.intermediate_size / large.hidden_size
    assert small.intermediate_size / small.hidden_size == pytest.approx(ratio, rel=0.03)
    pairs = (line.removeprefix("model.").split("=") for line in overrides(small))
    keys: dict[str, Any] = {key: int(value) for key, value in pairs}
    assert replace(large, **keys) == small


def test_the_target_itself_has_its_own_shape():
    large = model("danube_1_8b")
    assert shape_of(large, count(large)) is large


def test_parameters_are_counted_with_or_without_head():
    large = model("danube_1_8b")
    embedding = large.vocab_size * large.hidden_size
    assert count(large) - count(large, "non_embedding") == embedding
    assert count(large, "all") == parameters(large)
    tied = replace(large, tie_embeddings=True, architecture="llama", sliding_window=None)
    assert count(tied) == count(large)  # a tied head costs as many FLOPs
    assert count(tied, "all") == parameters(large) - embedding


def test_a_size_below_the_smallest_model_is_refused():
    with pytest.raises(InputError, match="too few for the shape of the target"):
        shape_of(model("danube_1_8b"), 1e5)


def test_flops_between_sizes_follow_those_of_real_models():
    large = model("danube_1_8b")
    flops = FlopsBySize(large, 2048, "head")
    for part in (1, 3, 10):
        other = shape_of(large, count(large) / part)
        assert flops(count(other)) == pytest.approx(flops_per_token(other, 2048), rel=0.1)


def target() -> PretrainConfig:
    return PretrainConfig(
        model=model("danube_1_8b"),
        recipe=TrainingRecipeConfig(
            name="r",
            global_batch_tokens=1_179_648,
            stages={"a": TrainingStageConfig(seq_len=2048, tokens=10**12)},
        ),
        optim=OptimConfig(learning_rate=2e-4),
    )


def test_the_rule_of_olmo_has_its_constants():
    small = shape_of(model("danube_1_8b"), 108e6)
    found = settings_of("olmo", small, target(), samples=1, seq_len=2048)
    size = count(small)
    assert found.learning_rate == pytest.approx(0.00235 * (size / 108e6) ** (-1 / 3))
    assert found.batch_tokens == pytest.approx(160 * 2048 * (size / 108e6) ** (2 / 3), rel=0.01)
    assert found.batch_tokens % 2048 == 0
    assert found.warmup_tokens == size
    assert found.beta2 == 0.99
    assert settings_of("olmo", target().model, target(), 1, 2048).beta2 == 0.95


@pytest.mark.parametrize("rule", RULES[1:])
def test_other_rules_start_from_the_target(rule):
    whole = target()
    found = settings_of(rule, whole.model, whole, samples=64, seq_len=2048)
    assert found.learning_rate == pytest.approx(2e-4)
    assert found.batch_tokens == 1_179_648
    small = settings_of(rule, shape_of(whole.model, count(whole.model) / 8), whole, 1, 2048)
    expected = 2.0 if rule == "scaled" else 1.0
    assert small.learning_rate / found.learning_rate == pytest.approx(expected, rel=0.1)
    assert small.batch_tokens * 4 == pytest.approx(found.batch_tokens, rel=0.2)


def test_rates_do_not_rise_without_limit_for_tiny_models():
    tiny = replace(
        model("demo_3m"), hidden_size=64, intermediate_size=176, num_heads=2, head_dim=32
    )
    assert count(tiny) < 1e6
    assert settings_of("olmo", tiny, target(), 1, 256).learning_rate < 0.007
