"""Which steps of a run a cache serves, and the sentences about those that it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import StagePlan
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig
from pretrain.teacher_cache.coverage import Contexts, check_coverage, covered_steps, shared_steps
from pretrain.teacher_cache.manifest import CacheManifest
from pretrain.teacher_cache.units import read_steps, samples_of

SOURCES = {"code": 200_000, "prose": 100_000}


def run_of(seed: int = 0, data: str = "a", atom: int | None = 128, **stages: Any) -> Contexts:
    """Returns a run of two stages of ten steps each, with changes of keys by stage."""
    keys: dict[str, dict[str, Any]] = {
        "short": {"seq_len": 64, "tokens": 20_480},
        "long": {"seq_len": 128, "tokens": 20_480},
    }
    for name, changes in stages.items():
        keys[name] = keys.get(name, {}) | changes
    configs = {name: TrainingStageConfig(**stage) for name, stage in keys.items()}
    recipe = TrainingRecipeConfig("test", 2048, configs, atom)
    plan = StagePlan(recipe, SOURCES)
    order = SampleOrder(plan.source_tokens, plan.stages, seed, 4.0, atom)
    return Contexts(plan, order, recipe, [data] * len(configs), "tokens")


def cache_of(run: Contexts, steps: str | None = None, **changes: Any) -> CacheManifest:
    """Returns the manifest of a cache for a run."""
    part = read_steps(steps, run.plan.total_steps)
    manifest = CacheManifest(
        teacher={"path": "teacher", "fingerprint": "f"},
        tokenizer="tokens",
        vocab_size=300,
        precision="fp32",
        top_k=8,
        order=json.loads(run.order.to_json()),
        data=list(run.data),
        contexts=[run.of_stage(number) for number in range(len(run.plan.stages))],
        stages=[stage.name for stage in run.plan.stages],
        steps=[part.start + 1, part.stop],
        samples=samples_of(run.plan, part),
        micro_batch_tokens=512,
        unit_tokens=8192,
        files=[],
    )
    return replace(manifest, **changes)


RUN = run_of()


@pytest.mark.parametrize(
    ("other", "steps"),
    [
        (run_of(), 20),
        (run_of(short={"global_batch_tokens": 1024}), 30),
        (run_of(long={"global_batch_tokens": 4096}), 15),
        (run_of(long={"tokens": 4096, "planned_tokens": 20_480}), 12),
        (run_of(long={"rope_theta": 5e4, "precision": "bf16"}), 20),
        (run_of(long={"mixture": {"code": 1.0}}), 10),
        (run_of(long={"documents": "joined"}), 10),
        (run_of(short={"tokens": 6144}), 0),
        (run_of(short={"documents": "joined"}), 0),
        (run_of(seed=1), 0),
        (run_of(data="b"), 0),
        (run_of(atom=256), 0),
    ],
    ids=[
        *("same", "batch", "later-batch", "shorter", "training-keys", "mixture", "documents"),
        *("window", "first-documents", "seed", "corpus", "atom"),
    ],
)
def test_steps_are_shared_up_to_the_first_other_context(other, steps):
    assert shared_steps(cache_of(RUN), other) == steps
    located = SampleOrder.from_json(RUN.order.to_json())
    for step in range(steps):
        stage, samples = other.plan.at(step).index, np.array(other.plan.samples_at(step))
        ours, theirs = other.order.locate(stage, samples), located.locate(stage, samples)
        assert ours.start.tolist() == theirs.start.tolist()
        assert ours.source.tolist() == theirs.source.tolist()


def test_a_part_covers_whole_steps_of_another_batch():
    part = cache_of(RUN, "4..13")  # tokens 6,144 to 26,624
    assert covered_steps(part, RUN) == range(3, 13)
    assert covered_steps(part, run_of(short={"global_batch_tokens": 1024})) == range(6, 23)
    assert covered_steps(part, run_of(short={"global_batch_tokens": 4096})) == range(2, 8)
    assert not covered_steps(part, run_of(seed=1))


def test_several_caches_cover_a_run_together():
    early, late = cache_of(RUN, "1..12"), cache_of(RUN, "10..20")
    check_coverage({"a": late, "b": early}, RUN, range(20))
    branch = run_of(long={"mixture": {"prose": 1.0}})
    check_coverage({"trunk": early, "own": cache_of(branch, "11..20")}, branch, range(5, 20))


@pytest.mark.parametrize(
    ("run", "steps", "message"),
    [
        (
            RUN,
            range(20),
            "it has the answers for steps 4 to 13 of its recipe, but this run also needs those for "
            "its steps 1 to 3. Teach these steps with steps=1..3 into another folder, and give "
            r"objective.teacher_cache=\[old,OTHER\].",
        ),
        (RUN, range(5, 20), "its steps 14 to 20"),
        (
            run_of(long={"mixture": {"code": 1.0}}),
            range(5, 20),
            "shares the contexts of its steps 1 to 10, but not those of steps 11 to 20, because it "
            r"was made with recipe.stages.long.mixture=.*, not {'code': 1.0}. Restore the setting",
        ),
        (run_of(seed=3), range(20), "other contexts, because it was made with seed=0, not 3"),
        (run_of(atom=256), range(20), "made with recipe.atom_tokens=128, not 256"),
        (run_of(data="b"), range(3, 13), "stage 'short' reads another corpus or edition"),
        (
            run_of(short={"seq_len": 128}),
            range(3, 13),
            "made with recipe.stages.short.seq_len=64, not 128",
        ),
        (
            run_of(short={"documents": "joined"}),
            range(3, 13),
            "made with recipe.stages.short.documents=separate, not joined",
        ),
        (
            run_of(more={"seq_len": 128, "tokens": 2048}),
            range(20, 21),
            "because its recipe ends before the stage 'more'",
        ),
    ],
)
def test_other_contexts_are_refused_with_what_differs(run, steps, message):
    with pytest.raises(InputError, match=message):
        check_coverage({"old": cache_of(RUN, "4..13")}, run, steps)


def test_another_tokenizer_shares_nothing():
    other = cache_of(RUN, tokenizer="other")
    with pytest.raises(InputError, match="because it is from another tokenizer"):
        check_coverage({"old": other}, RUN, range(20))


def test_a_key_that_a_cache_does_not_state_has_its_default():
    cache = cache_of(RUN)
    contexts = [{k: v for k, v in one.items() if k != "documents"} for one in cache.contexts]
    older = replace(cache, contexts=contexts)
    assert shared_steps(older, RUN) == 20
    assert shared_steps(older, run_of(short={"documents": "joined"})) == 0
