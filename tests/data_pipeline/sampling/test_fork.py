"""The order of a branch: the trunk's up to the fork, and no repeat inside an epoch after it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.sampling.fork import fork_recipe
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import BatchRamp, RecipeConfig, StageConfig, StagePlan

ATOM, SEED = 32, 5
MIXTURES: list[dict[str, float]] = [
    {"web": 1.0},
    {"web": 0.7, "code": 0.3},
    {"web": 0.2, "code": 0.8},
    {"code": 1.0},
]
Streams = list[list[tuple[str, int, int, int]]]


def laid_out(recipe: RecipeConfig, sizes: list[dict[str, int]]) -> tuple[StagePlan, SampleOrder]:
    """The plan and the order of a run."""
    plan = StagePlan(recipe, sizes)
    return plan, SampleOrder(plan.source_tokens, plan.stages, SEED, atom=recipe.atom_tokens)


def stream(plan: StagePlan, order: SampleOrder) -> Streams:
    """(source, epoch, start, length) of each sample of each step, in order."""
    steps = []
    for step in range(plan.total_steps):
        stage = plan.at(step)
        at = order.locate(stage.index, np.array(plan.samples_at(step)))
        names = [order.sources[number] for number in at.source]
        lengths = [stage.seq_len] * len(at)
        steps.append(list(zip(names, at.epoch.tolist(), at.start.tolist(), lengths, strict=True)))
    return steps


def repeats(steps: Streams) -> list[tuple[str, int, int]]:
    """The (source, epoch, piece of 8 tokens) that are read more than once."""
    served = Counter(
        (source, epoch, piece)
        for step in steps
        for source, epoch, start, length in step
        for piece in range(start // 8, (start + length) // 8)
    )
    return [piece for piece, count in served.items() if count > 1]


def tokens(source: str, steps: Streams) -> int:
    return sum(length for step in steps for name, _, _, length in step if name == source)


@st.composite
def recipes(draw: Any, prefix: str, longest: int = ATOM, sources: str = "web code") -> RecipeConfig:
    """Draws a recipe of one to three stages whose sequences do not get longer."""
    stages = {}
    for number in range(draw(st.integers(1, 3))):
        longest = draw(st.sampled_from([n for n in (8, 16, 32) if n <= longest]))
        mixture = dict(draw(st.sampled_from(MIXTURES)))
        if "notes" in sources and draw(st.booleans()):
            mixture["notes"] = 0.5
        stage = StageConfig(
            longest,
            draw(st.integers(1, 60)) * 64,
            mixture,
            global_batch_tokens=draw(st.sampled_from([None, 64, 192])),
        )
        if draw(st.booleans()):
            stage.planned_tokens = stage.tokens + draw(st.integers(0, 60)) * 64
        if draw(st.booleans()):
            stage.global_batch_tokens = 256
            stage.batch_ramp = BatchRamp(64, 64, draw(st.integers(1, 20)) * 100)
        stages[f"{prefix}{number}"] = stage
    return RecipeConfig(prefix, 128, stages, ATOM)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_branch_reads_what_its_trunk_read_and_then_repeats_nothing(data):
    draw = data.draw
    old = {"web": draw(st.integers(300, 6000)), "code": draw(st.integers(300, 6000))}
    new = {name: n + draw(st.sampled_from([0, 1, 33, 1500])) for name, n in old.items()}
    new["notes"] = draw(st.integers(100, 2000))
    sizes = [old, new]
    trunk = draw(recipes("trunk"))
    for stage in trunk.stages.values():
        stage.edition = 1
    plan, order = laid_out(trunk, sizes)
    before = stream(plan, order)
    step = draw(st.integers(1, plan.total_steps))
    for level in range(draw(st.integers(1, 2))):  # a branch, or a branch of a branch
        own = draw(recipes(f"own{level}", plan.at(step - 1).seq_len, "web code notes"))
        own.stages["own" + f"{level}0"].edition = 2
        recipe = fork_recipe(trunk, plan, step, own, ATOM, "trunk")
        now, branch = laid_out(recipe, sizes)
        steps = stream(now, branch)
        assert steps[:step] == before[:step]
        assert now.tokens_at(step) == plan.tokens_at(step)
        assert now.at(step) == now.own_stages[0]
        assert not repeats(steps)
        consumed = branch.consumed(*now.position(now.total_steps))
        assert consumed == {source: tokens(source, steps) for source in branch.sources}
        assert (
            order.consumed(*plan.position(step)).items()
            <= (dict.fromkeys(branch.sources, 0) | branch.consumed(*now.position(step))).items()
        )
        trunk, plan, order, before = recipe, now, branch, steps
        step = draw(st.integers(step + 1, plan.total_steps))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_branch_with_the_recipe_of_its_trunk_reads_what_it_would_have_read(data):
    sizes = [{"web": data.draw(st.integers(300, 6000)), "code": 9000}]
    trunk = data.draw(recipes("trunk"))
    plan, order = laid_out(trunk, sizes)
    step = data.draw(st.integers(1, plan.total_steps))
    again = replace(trunk, stages={name: replace(s) for name, s in trunk.stages.items()})
    if step == plan.total_steps:
        with pytest.raises(InputError, match=r"recipe\.stages: trunk has trained all of these"):
            fork_recipe(trunk, plan, step, again, ATOM, "trunk")
        return
    recipe = fork_recipe(trunk, plan, step, again, ATOM, "trunk")
    now, branch = laid_out(recipe, sizes)
    assert stream(now, branch) == stream(plan, order)
    index, samples = plan.position(step)
    assert branch.has_same_history(order, index, samples)
    assert recipe.inherited == index + (samples == plan.stages[index].samples)


def test_each_document_is_found_in_the_trunk_s_stages_and_in_the_branch_s():
    sizes = [{"web": 9000, "code": 5000}, {"web": 12_000, "code": 5000, "notes": 2000}]
    first = StageConfig(16, 4096, {"web": 0.5, "code": 0.5}, edition=1)
    trunk = RecipeConfig("trunk", 128, {"first": first}, ATOM)
    plan, _ = laid_out(trunk, sizes)
    later = StageConfig(8, 12_800, {"web": 1.0, "notes": 1.0}, edition=2)
    own = RecipeConfig("own", 64, {"later": later})
    now, branch = laid_out(fork_recipe(trunk, plan, 7, own, ATOM, "trunk"), sizes)
    steps = stream(now, branch)
    for source in branch.sources:
        uses = branch.find(source, 640, 704)
        found = [
            (now.step_of(stage, sample), start)
            for stage, sample, start in zip(uses.stage, uses.sample, uses.start, strict=True)
        ]
        read = [
            (number, start)
            for number, step in enumerate(steps)
            for name, _, start, length in step
            if name == source and start < 704 and start + length > 640
        ]
        assert sorted(found) == sorted(read)
    assert {"first", "later"} == {stage.name for stage in now.stages}
    assert [stage.end_step for stage in now.stages] == [7, 207]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_branch_in_another_corpus_continues_the_sources_that_both_have(data):
    draw = data.draw
    old = {"web": draw(st.integers(300, 6000)), "code": draw(st.integers(300, 6000))}
    new = {"web": old["web"] + draw(st.sampled_from([0, 33, 1500])), "notes": 2000}
    trunk = draw(recipes("trunk"))
    plan, order = laid_out(trunk, [old])
    step = draw(st.integers(1, plan.total_steps))
    seq_len = draw(st.sampled_from([n for n in (8, 16, 32) if n <= plan.at(step - 1).seq_len]))
    own = {"own": StageConfig(seq_len, 6400, {"web": 1.0, "notes": 0.5})}
    recipe = fork_recipe(trunk, plan, step, RecipeConfig("own", 64, own), ATOM, "trunk")
    for stage in list(recipe.stages.values())[: recipe.inherited]:
        stage.source_tokens = old
    now, branch = laid_out(recipe, [new])
    before, steps = stream(plan, order), stream(now, branch)
    assert steps[:step] == before[:step]
    assert not repeats(steps)
    assert "code" not in {name for step in steps[step:] for name, *_ in step}
    consumed = branch.consumed(*now.position(now.total_steps))
    assert consumed == {source: tokens(source, steps) for source in branch.sources}
    again = SampleOrder.from_json(branch.to_json())
    assert stream(now, again) == steps
    assert again.fingerprint == branch.fingerprint
    assert '"format": 4' in branch.to_json()
    back = StageConfig(8, 6400, {"code": 1.0}, source_tokens=old)  # and back in the first corpus
    home = RecipeConfig("home", 64, {"home": back})
    middle = draw(st.integers(step + 1, now.total_steps))
    final = fork_recipe(recipe, now, middle, home, ATOM, "branch")
    if new["web"] > old["web"]:
        final.stages["home"].source_tokens = old | {"web": new["web"]}
    assert not repeats(stream(*laid_out(final, [new])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 8}, r"first\.seq_len=8: runs/t@6 trained this stage with 16\. Restore"),
        ({"mixture": {"web": 1.0}}, r"first\.mixture={'web': 1\.0}: .* so that it begins after s"),
        ({"global_batch_tokens": 64}, r"first\.global_batch_tokens=64: .* with 128"),
        ({"documents": "joined"}, r"first\.documents=joined: .* with separate"),
    ],
)
def test_a_stage_that_is_continued_must_be_that_of_the_trunk(changes, message):
    first = StageConfig(16, 4096, {"code": 1.0})
    trunk = RecipeConfig("trunk", 128, {"first": first, "last": StageConfig(16, 4096)}, ATOM)
    plan, _ = laid_out(trunk, [{"web": 9000, "code": 5000}])
    own = RecipeConfig("own", 128, {"first": replace(first, **changes)})
    with pytest.raises(InputError, match=message):
        fork_recipe(trunk, plan, 6, own, ATOM, "runs/t@6")


def test_a_stage_that_is_over_keeps_its_tokens_and_the_order_its_atoms():
    first = StageConfig(16, 4096, {"code": 1.0})
    trunk = RecipeConfig("trunk", 128, {"first": first, "last": StageConfig(16, 4096)}, ATOM)
    plan, _ = laid_out(trunk, [{"web": 9000, "code": 5000}])
    more = StageConfig(16, 4096, {"web": 1.0})
    own = RecipeConfig("own", 128, {"first": replace(first, tokens=8192), "more": more})
    with pytest.raises(InputError, match=r"first\.tokens=8192: runs/t@40 trained .* with 4096"):
        fork_recipe(trunk, plan, 40, own, ATOM, "runs/t@40")
    own = RecipeConfig("own", 128, {"more": more}, atom_tokens=64)
    with pytest.raises(InputError, match=r"recipe\.atom_tokens=64: the order of runs/t@40 has at"):
        fork_recipe(trunk, plan, 40, own, ATOM, "runs/t@40")
