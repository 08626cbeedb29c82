"""The bytes that each layout sends are those of the plan's formula."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from launch.plan.traffic import traffic
from tests.distributed.traffic import BATCH, LAYOUTS, MICRO_BATCHES, SEQ, case

LOSS_BYTES = 4 * MICRO_BATCHES
"""Context-parallel ranks add up their losses: single numbers, which the formula leaves out."""


@pytest.fixture(scope="module")
def counted(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("traffic") / "results.json"
    done = command("tests.distributed.traffic", str(out), processes=4)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_sends_what_the_plan_says(name, counted):
    model, parallel = case(name)
    batch_tokens = BATCH * SEQ * MICRO_BATCHES * parallel.dp_shard * parallel.dp_replicate
    expected: Counter[str] = Counter()
    for part in traffic(model, parallel, SEQ, batch_tokens):
        expected[part.kind] += int(part.bytes)
    if parallel.cp > 1:
        expected["all_reduce"] += LOSS_BYTES
    most: Counter[str] = Counter()
    for rank in counted[name]:
        most |= Counter(rank["bytes"])
    assert dict(most) == dict(+expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_norm_of_the_gradients_costs_one_message(name, counted):
    for rank in counted[name]:
        assert rank["optimizer_calls"] == {"all_reduce": 1}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("shard 4", ("all_gather", "reduce_scatter")),
        ("shard 4, kept after forward", ("all_gather", "reduce_scatter")),
        ("replicate 2 x shard 2", ("all_gather",)),
    ],
)
def test_what_runs_beside_the_computation(name, kinds, counted):
    for rank in counted[name]:
        for kind in kinds:
            assert rank["calls"][kind]
            assert rank["blocking"][kind] == 0
    # The count sees those that do block.
    assert counted["replicate 4"][0]["blocking"]["all_reduce"]
