"""The later part of a run may be changed, the part that it was trained on may not."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from data_pipeline.sampling.order import SampleOrder
from data_pipeline.trace import RunData
from tests.runs import arguments, ledger, records

ATOM = {"recipe__atom_tokens": 128}


@pytest.fixture(scope="module")
def begun(command, corpus, tmp_path_factory):
    """A run of 20 steps in two stages, stopped after 5 of the 10 steps of the first."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=5, **ATOM))
    assert done.returncode == 0, done.stderr
    return run_dir


def test_another_batch_is_refused_though_the_samples_are_the_same(command, corpus, begun):
    batch = {"recipe__global_batch_tokens": 4096}
    done = command(*arguments(corpus.folder, begun, **ATOM, **batch))
    assert done.returncode == 2
    assert "was trained with other batches: its 5 steps took 160 samples" in done.stderr


def test_the_mixture_changes_in_the_middle_of_a_stage(command, corpus, begun):
    before = ledger(begun)
    change = {
        "recipe__stages__short__mixture": "{code:0.2,prose:0.8}",
        "recipe__stages__long__seq_len": 64,
    }
    done = command(*arguments(corpus.folder, begun, **ATOM, **change))
    assert done.returncode == 2
    assert "was trained in another order of samples" in done.stderr
    assert (
        "end stage 'short' here with recipe.stages.short.tokens=10240 "
        "recipe.stages.short.planned_tokens=20480 and make" in done.stderr
    )
    change = {
        "recipe__stages__short__tokens": 10240,
        "recipe__stages__short__planned_tokens": 20480,
        "recipe__stages__long__seq_len": 64,
        "recipe__stages__long__tokens": 30720,
        "recipe__stages__long__mixture": "{code:0.2,prose:0.8}",
    }
    done = command(*arguments(corpus.folder, begun, **ATOM, **change))
    assert done.returncode == 0, done.stderr
    assert ledger(begun)[:5] == before
    assert [line["step"] for line in ledger(begun)] == list(range(1, 21))
    order = SampleOrder.from_json((begun / "order.json").read_text())
    served: Counter[tuple[int, int, int]] = Counter()
    for stage, plan in enumerate(order.stages):
        at = order.locate(stage, np.arange(plan.samples))
        for place in zip(at.source.tolist(), at.epoch.tolist(), at.start.tolist(), strict=True):
            served[place] += 1
    assert max(served.values()) == 1
    metrics = records(begun)
    assert metrics[-1]["consumed_tokens"] == order.consumed(1, order.stages[1].samples)
    manifest = json.loads((begun / "checkpoints/step_20/manifest.json").read_text())
    position = manifest["position"]
    assert (position["stage"], position["name"], position["samples"]) == (1, "long", 480)
    for source in order.sources:
        assert position["sources"][source] == {
            "tokens": metrics[-1]["consumed_tokens"][source],
            "epochs": metrics[-1]["consumed_epochs"][source],
            "documents": metrics[-1]["consumed_documents"][source],
        }
    ended = Counter(
        row["source"]
        for step in range(1, 21)
        for row in RunData(begun).documents_of_step(step)
        if json.loads(row["text"]).endswith("</s>")
    )
    assert ended == metrics[-1]["consumed_documents"]
