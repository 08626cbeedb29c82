"""I1, I4 and I6 on numbers of ranks that do not divide the batch: the same samples and losses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runs import arguments, ledger, records

TINY: dict[str, Any] = {
    "model__hidden_size": 32,
    "model__intermediate_size": 48,
    "model__num_heads": 4,
    "model__num_kv_heads": 2,
    "model__head_dim": 8,
    "checkpoint__every_steps": 0,
    "validation__every_steps": 0,
    "validation__tokens": 640,
    "optim__learning_rate": 0.003,
}
RAMP: dict[str, Any] = TINY | {
    "recipe__stages__short__tokens": 3072,
    "recipe__stages__short__batch_ramp": "{start:1024,increment:1024,tokens:1024}",
    "recipe__stages__long__tokens": 1280,
    "recipe__stages__long__global_batch_tokens": 640,
    "parallel__micro_batch_tokens": 384,
}
"""Steps of 16 and 32 sequences of 64 tokens, then of 5 sequences of 128; micro-batches of at most 6
and 3 sequences."""
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "three": (3, {}),
    "five": (5, {}),
    "seven, more than sequences": (7, {}),
    "three that split every sequence": (6, {"parallel__cp": 2}),
    "three that split every matrix": (6, {"parallel__tp": 2}),
    "three copies": (3, {"parallel__dp_replicate": 3, "parallel__dp_shard": 1}),
}
DANUBE: dict[str, Any] = TINY | {
    "recipe": "danube_1t",
    "model__sliding_window": 32,
    "recipe__global_batch_tokens": 72 * 128,
    **{
        f"recipe__stages__{name}__{key}": value
        for name, seq_len in {"s2k": 16, "s4k": 32, "s8k": 64, "s16k": 128}.items()
        for key, value in {"seq_len": seq_len, "tokens": 72 * 128}.items()
    },
    "parallel__micro_batch_tokens": 1024,
}


def train(warm, corpus, folder, ranks, changes):
    args = arguments(corpus.folder, folder / "run", **changes)
    if changes.get("recipe"):  # has no stages of these names
        args = [a for a in args if not a.startswith(("recipe.stages.short", "recipe.stages.long"))]
    ended = warm.run(args, ranks, folder)
    assert set(ended.codes) == {0}, ended.said
    return folder / "run"


def same(found, single):
    """The ledgers, with the digests of all steps, are equal; the losses to 1e-6."""
    assert ledger(found) == ledger(single)
    ours, theirs = records(found), records(single)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["source_loss"] == pytest.approx(b["source_loss"], rel=3e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        for key in ("consumed_documents", "consumed_tokens", "tokens"):
            assert a[key] == b[key]
    for a, b in zip(records(found, "validation"), records(single, "validation"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert {s: v["tokens"] for s, v in a["sources"].items()} == {
            s: v["tokens"] for s, v in b["sources"].items()
        }


@pytest.fixture(scope="module")
def single(warm, corpus, tmp_path_factory):
    return train(warm, corpus, tmp_path_factory.mktemp("one"), 1, RAMP)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_number_of_ranks_takes_the_steps_of_one(layout, single, warm, corpus, tmp_path):
    ranks, changes = LAYOUTS[layout]
    same(train(warm, corpus, tmp_path, ranks, RAMP | changes), single)


def test_the_four_stages_of_danube_on_sixteen_ranks(warm, corpus, tmp_path):
    """Batches of 576, 288, 144 and 72 sequences."""
    runs = {}
    for ranks in (1, 16):
        (tmp_path / str(ranks)).mkdir()
        runs[ranks] = train(warm, corpus, tmp_path / str(ranks), ranks, DANUBE)
    same(runs[16], runs[1])
    assert [line["samples"] for line in ledger(runs[16])] == [576, 288, 144, 72]
    # 36, 18, 9 and, on some ranks, 5 sequences: only the last stage has blank ones, 8 of 80.
    shares = [json.loads((runs[n] / "env.json").read_text())["blank_share"] for n in runs]
    assert shares == [0, pytest.approx(1 - 4 / (3 + 80 / 72))]
