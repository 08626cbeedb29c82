"""Tests of the editions that the stages of a run read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from data_pipeline.store.manifest import Manifest
from pretrain.checkpoints.files import write_manifest
from pretrain.config import PretrainConfig
from pretrain.editions import choose_editions, plan_editions
from pretrain.export import _editions_read
from pretrain.recipe import TrainingStageConfig
from pretrain.resume_checks import check_same_data
from tests.runs import settings

SIZES = [{"web": 9000}, {"web": 12_000, "code": 5000}, {"web": 12_000, "code": 8000}]


def made(folder: Path, editions: int, seed: str = "") -> Manifest:
    """A manifest of a corpus with up to three editions, without its files."""
    corpus = None
    for number in range(editions):
        before = SIZES[number - 1] if number else {}
        added = {s: n - before.get(s, 0) for s, n in SIZES[number].items()}
        shards = {
            source: [{"file": f"{seed}{source}-{number}", "documents": 9, "tokens": tokens}]
            for source, tokens in added.items()
            if tokens
        }
        part = Manifest(
            folder, "made", str(number), {"vocab_size": 260}, "uint16", {"train": shards}, {}
        )
        corpus = part if corpus is None else corpus.extended(part)
    assert corpus is not None
    return corpus


def run(run_dir: Path, **editions: int | str | None) -> PretrainConfig:
    """The config of a run whose stages weigh the sources by size, with the given editions.

    The stage `more` is added if it is named.
    """
    config = settings("data/made", run_dir)
    if "more" in editions:
        config.recipe.stages["more"] = TrainingStageConfig(128, 2048)
    for name, edition in editions.items():
        config.recipe.stages[name].edition = edition
    for stage in config.recipe.stages.values():
        stage.mixture = {}
    return config


def start(config: PretrainConfig, corpus: Manifest) -> list[int]:
    """Decides the editions as a start does, and records them."""
    _, editions = plan_editions(config, corpus, choose_editions(config, corpus))
    folder = Path(config.run_dir)
    folder.mkdir(exist_ok=True)
    about = {"editions": editions, "data_fingerprint": editions[0]["data"]}
    (folder / "env.json").write_text(json.dumps(about))
    return [stage["edition"] for stage in editions]


def test_a_new_run_reads_the_newest_edition_and_stays_on_it(tmp_path):
    assert start(run(tmp_path / "run"), made(tmp_path, 2)) == [2, 2]
    assert start(run(tmp_path / "run"), made(tmp_path, 3)) == [2, 2]
    assert start(run(tmp_path / "new"), made(tmp_path, 3)) == [3, 3]


def test_a_run_of_an_earlier_version_is_found_by_its_fingerprint(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    fingerprint = made(tmp_path, 1).fingerprint
    (run_dir / "env.json").write_text(json.dumps({"data_fingerprint": fingerprint}))
    assert start(run(run_dir), made(tmp_path, 3)) == [1, 1]


def test_a_run_without_its_env_json_is_found_by_its_checkpoint(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step_5"
    path.mkdir(parents=True)
    about = {"step": 5, "data": made(tmp_path, 2).fingerprint, "files": {}}
    write_manifest(path, about)
    assert start(run(tmp_path / "run"), made(tmp_path, 3)) == [2, 2]


def test_the_newest_edition_is_that_of_the_first_plan(tmp_path):
    run_dir = tmp_path / "run"
    assert start(run(run_dir), made(tmp_path, 1)) == [1, 1]
    assert start(run(run_dir, more="latest"), made(tmp_path, 2)) == [1, 1, 2]
    assert start(run(run_dir, more="latest"), made(tmp_path, 3)) == [1, 1, 2]
    assert start(run(run_dir, more=3), made(tmp_path, 3)) == [1, 1, 3]
    assert start(run(run_dir, more=None), made(tmp_path, 3)) == [1, 1, 3]


def test_a_later_stage_follows_the_stage_before(tmp_path):
    assert start(run(tmp_path / "run"), made(tmp_path, 1)) == [1, 1]
    assert start(run(tmp_path / "run", long=2, more=None), made(tmp_path, 3)) == [1, 2, 2]


@pytest.mark.parametrize(
    ("edition", "message"),
    [
        (4, "edition=4: the newest edition of the corpus is 3"),
        (1, "edition=1: the stage before reads edition 3"),
    ],
)
def test_an_edition_that_cannot_be_read_is_refused(tmp_path, edition, message):
    config = run(tmp_path / "run", long=edition)
    corpus = made(tmp_path, 3)
    with pytest.raises(InputError, match=message):
        plan_editions(config, corpus, choose_editions(config, corpus))


@pytest.mark.parametrize("edition", [0, "newest", 1.5, True])
def test_an_edition_is_a_number_or_latest(edition):
    stage = StageConfig(64, 2048, edition=edition)
    with pytest.raises(InputError, match=rf"short\.edition={edition}: expected the number of an"):
        RecipeConfig("r", 2048, {"short": stage})


def test_a_stage_weighs_the_sources_of_its_edition():
    stages = {"a": StageConfig(64, 2048, edition=1), "b": StageConfig(64, 2048, edition=2)}
    plan = StagePlan(RecipeConfig("r", 2048, stages), SIZES)
    assert plan.source_tokens == SIZES[0]
    assert [stage.weights for stage in plan.stages] == SIZES[:2]
    assert [stage.source_tokens for stage in plan.stages] == [None, SIZES[1]]
    stages["a"].mixture = {"web": 1.0, "code": 1.0}
    with pytest.raises(
        InputError, match=r"a\.mixture\.code=1\.0: this source was added .* edition 2, .* not read"
    ):
        StagePlan(RecipeConfig("r", 2048, stages), SIZES)


def test_a_checkpoint_is_compared_with_the_edition_of_each_stage_that_has_started(tmp_path):
    corpus = made(tmp_path, 3)
    one, two, three = (corpus.at_edition(number).fingerprint for number in (1, 2, 3))

    def editions(*numbers):
        prints = {1: one, 2: two, 3: three}
        names = ("short", "long", "more")
        return [
            {"stage": name, "edition": number, "data": prints[number]}
            for name, number in zip(names, numbers, strict=False)
        ]

    def check(corpus, now, before, stage):
        metadata = {"data": one, "position": {"stage": stage}} | before
        check_same_data(metadata, corpus, now, "step_5", "data/made")

    check(corpus, editions(1, 1), {}, 1)
    check(corpus, editions(1, 2), {}, 0)  # the second stage has not started
    check(corpus, editions(1, 2, 3), {"editions": editions(1, 2, 2)}, 1)
    with pytest.raises(InputError, match=r"long\.edition=2: step_5 was trained with edition 1\."):
        check(corpus, editions(1, 2), {}, 1)
    with pytest.raises(InputError, match=r"more\.edition=3: step_5 was trained with edition 2\."):
        check(corpus, editions(1, 2, 3), {"editions": editions(1, 2, 2)}, 2)
    anew = made(tmp_path, 3, "anew")
    now = [{"stage": "short", "edition": 3, "data": anew.fingerprint}]
    with pytest.raises(InputError, match=r"step_5 was trained on other data \(fingerprint "):
        check(anew, now, {}, 0)


def test_the_corpus_of_a_run_is_its_newest_edition_or_none(tmp_path):
    corpus = made(tmp_path, 3)
    prints = [corpus.at_edition(number).fingerprint for number in (1, 2)]
    env: dict[str, Any] = {"data_fingerprint": prints[0]}
    found = corpus.of_run(env)
    assert found is not None
    assert found.edition_count == 1
    env["editions"] = [{"data": prints[0]}, {"data": prints[1]}]
    found = corpus.of_run(env)
    assert found is not None
    assert found.source_tokens("train") == SIZES[1]
    assert corpus.at_edition(1).of_run(env) is None


def test_a_model_card_names_the_editions_that_were_read(tmp_path):
    corpus = made(tmp_path, 3)
    stages = {"a": StageConfig(64, 2048, edition=1), "b": StageConfig(64, 2048, edition=2)}
    plan = StagePlan(RecipeConfig("r", 2048, stages), SIZES)
    one, two = (corpus.at_edition(number).fingerprint[:16] for number in (1, 2))
    assert _editions_read(plan.stages[:1], corpus) == f"made, fingerprint {one}"
    both = f"made, fingerprint {one} up to stage a, then fingerprint {two} up to stage b"
    assert _editions_read(plan.stages, corpus) == both
