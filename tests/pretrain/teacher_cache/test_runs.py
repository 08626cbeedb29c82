"""Runs that read a teacher's answers from a cache, in several layouts and next to the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store.manifest import Manifest
from pretrain.teacher_cache.command import teach
from tests.pretrain.teacher_cache.taught import SHORT, make_teacher, teach_config
from tests.runs import arguments, records
from tests.warm import Warm

STUDENT: dict[str, Any] = {
    **SHORT,
    "objective": "distill",
    "objective__top_k": 8,
    "validation__every_steps": 0,
    "checkpoint__every_steps": 0,
    "parallel__micro_batch_tokens": 384,  # so that the last micro-batch has blank samples
}


@pytest.fixture(scope="module")
def teacher(corpus: Manifest, tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "hf", corpus)


@pytest.fixture(scope="module")
def cache(corpus, teacher, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "cache"
    teach(teach_config(teacher, corpus.folder, out, top_k=12, **SHORT))
    return out


def run(warm: Warm, corpus: Manifest, run_dir: Path, ranks: int = 1, **changes: Any) -> Path:
    """Trains, and returns the run folder."""
    given = arguments(corpus.folder, run_dir, **STUDENT | changes)
    ended = warm.run(given, ranks, run_dir.parent)
    assert set(ended.codes) == {0}, ended.said
    return run_dir


@pytest.fixture(scope="module")
def cached(warm, corpus, cache, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("cached") / "run"
    return run(warm, corpus, run_dir, objective__teacher_cache=cache)


def numbers(run_dir: Path) -> list[list[float]]:
    keys = ("loss", "kl", "agreement", "grad_norm")
    return [[record[key] for key in keys] for record in records(run_dir)]


def test_the_cache_trains_like_the_network_to_its_rounding(cached, warm, corpus, teacher, tmp_path):
    online = run(warm, corpus, tmp_path / "run", objective__teacher=teacher)
    assert len(records(online)) == 4
    for ours, theirs in zip(numbers(cached), numbers(online), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    named = [json.loads((one / "env.json").read_text())["teacher"] for one in (cached, online)]
    assert named[0]["fingerprint"] == named[1]["fingerprint"]
    assert named[0]["path"] == named[1]["path"] == str(teacher)


@pytest.mark.parametrize("layout", [{"cp": 2}, {"dp_shard": 2}, {"tp": 2}], ids=str)
def test_any_layout_reads_the_same_answers(cached, warm, corpus, cache, tmp_path, layout):
    keys: dict[str, Any] = {f"parallel__{key}": value for key, value in layout.items()}
    found = run(warm, corpus, tmp_path / "run", 2, objective__teacher_cache=cache, **keys)
    for ours, theirs in zip(numbers(found), numbers(cached), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_run_that_changes_later_uses_the_part_that_it_shares(
    warm, corpus, teacher, cache, tmp_path
):
    """The second stage has another mixture, so its answers come from a cache of its own."""
    changed: dict[str, Any] = {"recipe__stages__long__mixture": "{code:1.0}"}
    own, keys = tmp_path / "own", {**SHORT, **changed, "steps": "3..4", "top_k": 12}
    teach(teach_config(teacher, corpus.folder, own, **keys))
    both = f"[{cache},{own}]"
    branch = run(warm, corpus, tmp_path / "run", **changed, objective__teacher_cache=both)
    online = run(warm, corpus, tmp_path / "online", **changed, objective__teacher=teacher)
    for ours, theirs in zip(numbers(branch), numbers(online), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
