"""The answers of a teacher for the stages of a branch: `teach branch_from=<run>@<step>`."""

from __future__ import annotations

import pytest

from conf.entry import compose_settings
from conf.errors import InputError
from pretrain.__main__ import COMMANDS
from pretrain.checkpoints.files import read_manifest, write_manifest
from pretrain.checks import sample_order
from pretrain.editions import plan_editions
from pretrain.teacher_cache.config import TeachConfig
from pretrain.teacher_cache.coverage import check_coverage, covered_steps
from pretrain.teacher_cache.teaching import Teaching
from tests.pretrain.branches.trunks import branch, composed, saved

DECAY = ["recipe=decay", "recipe.stages.decay.tokens=8192"]


def teaching(*words: str) -> Teaching:
    """Returns the work of a command line."""
    config = compose_settings(COMMANDS["teach"], ["out=answers", "top_k=4", *words])
    assert isinstance(config, TeachConfig)
    return Teaching.of(config)


def test_the_answers_for_a_branch_are_those_of_the_samples_that_it_reads(corpus, tmp_path):
    trunk = tmp_path / "trunk"
    before = saved(corpus, trunk, (3,), seed=7)
    config = composed(branch(trunk, 3, tmp_path / "branch", *DECAY))
    plan, _ = plan_editions(config, corpus, [1] * len(config.recipe.stages))
    found = teaching(f"branch_from={trunk}@3", *DECAY)
    assert found.run.order.fingerprint == sample_order(config, plan).fingerprint
    assert found.steps == range(3, 7)
    assert {unit.stage for unit in found.units} == {1}
    # The steps before the fork may come from a cache for the trunk.
    stages = [f"recipe.stages.{n}.tokens={s.tokens}" for n, s in before.recipe.stages.items()]
    lengths = [f"recipe.stages.{n}.seq_len={s.seq_len}" for n, s in before.recipe.stages.items()]
    batch = f"recipe.global_batch_tokens={before.recipe.global_batch_tokens}"
    given = [*stages, *lengths, batch, f"data={corpus.folder}", "seed=7", "max_epochs=4.0"]
    caches = {
        name: one.manifest({"fingerprint": "teacher"}, "fp32")
        for name, one in (("trunk", teaching("recipe=demo", *given)), ("branch", found))
    }
    assert covered_steps(caches["trunk"], found.run) == range(3)
    check_coverage(caches, found.run, range(7))
    with pytest.raises(InputError, match=r"shares the contexts of its steps 1 to 3, but not those"):
        check_coverage({"trunk": caches["trunk"]}, found.run, range(7))


def test_a_corpus_that_the_trunk_did_not_read_is_refused(corpus, tmp_path):
    trunk = tmp_path / "trunk"
    saved(corpus, trunk, (3,))
    folder = trunk / "checkpoints" / "step_3"
    about = read_manifest(folder)
    editions = [entry | {"data": "0" * 64} for entry in about["editions"]]
    write_manifest(folder, about | {"editions": editions})
    with pytest.raises(InputError, match=r"^data=.*: this is not the corpus of .*trunk@3\."):
        teaching(f"branch_from={trunk}@3", *DECAY)
