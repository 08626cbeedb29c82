"""The config of a branch: what it has from its trunk, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan
from pretrain.branches.holds import branches_of, held_steps, hold
from pretrain.branches.trunk import known_trunk, read_trunk, record
from pretrain.checkpoints import mirror
from pretrain.checkpoints.files import write_manifest
from pretrain.checkpoints.retention import Retention
from pretrain.checks import Job
from pretrain.optim.schedule import learning_rate
from pretrain.preflight import preflight
from tests.pretrain.branches.trunks import branch, composed, saved
from tests.s3_server import BUCKET

DECAY = ["recipe=decay", "recipe.stages.decay.tokens=8192"]


@pytest.fixture
def trunk(corpus, tmp_path):
    """The folder of a run with checkpoints of steps 3, 4 and 6, and its config."""
    return tmp_path / "trunk", saved(corpus, tmp_path / "trunk", (3, 4, 6), seed=7)


def test_a_branch_without_changes_has_the_settings_and_the_recipe_of_its_trunk(trunk, tmp_path):
    folder, before = trunk
    config = composed(branch(folder, 3, tmp_path / "branch"))
    for key in ("model", "optim", "objective", "seed", "precision", "data"):
        assert getattr(config, key) == getattr(before, key), key
    assert list(config.recipe.stages) == ["short", "long"]
    assert (config.recipe.inherited, config.recipe.atom_tokens) == (0, 128)
    assert [stage.tokens for stage in config.recipe.stages.values()] == [8192, 8192]
    preflight(config, Job(1, "cpu"))
    other = composed(branch(folder, 3, tmp_path / "branch", "optim.learning_rate=0.5", "seed=7"))
    assert other.optim.learning_rate == 0.5
    assert other.optim.warmup_tokens == before.optim.warmup_tokens


def test_a_decay_begins_at_the_fork_with_the_rate_of_the_trunk(trunk, corpus, tmp_path):
    folder, before = trunk
    config = composed(branch(folder, 3, tmp_path / "branch", *DECAY, "checkpoint.every_steps=0"))
    recipe = config.recipe
    assert (list(recipe.stages), recipe.inherited) == (["short", "decay"], 1)
    short, decay = recipe.stages.values()
    assert (short.tokens, short.planned_tokens) == (6144, 8192)
    assert (decay.seq_len, decay.mixture) == (64, {"code": 0.75, "prose": 0.25})
    assert recipe.global_batch_tokens == 2048
    sizes = corpus.edition_tokens("train")
    rate = learning_rate(before.optim, StagePlan(before.recipe, sizes), 6144)
    plan = StagePlan(recipe, sizes)
    assert [stage.name for stage in plan.own_stages] == ["decay"]
    rates = [learning_rate(config.optim, plan, 6144 + tokens) for tokens in (0, 2048, 8192)]
    assert rates == pytest.approx([rate, rate * 0.5, 0.0])
    preflight(config, Job(2, "cpu"))
    cut = composed(branch(folder, 6, tmp_path / "branch", *DECAY))
    assert list(cut.recipe.stages) == ["short", "long", "decay"]
    assert cut.recipe.stages["decay"].seq_len == 128
    assert cut.recipe.stages["short"].planned_tokens is None


def test_the_stages_of_the_trunk_that_are_to_come_can_be_changed(trunk, tmp_path):
    folder, _ = trunk
    words = branch(folder, 3, tmp_path / "branch", "recipe.stages.long.mixture={prose:1}")
    config = composed([*words, "+recipe.stages.more={seq_len:64,tokens:4096}"])
    assert list(config.recipe.stages) == ["short", "long", "more"]
    assert config.recipe.stages["long"].mixture == {"prose": 1.0}
    preflight(config, Job(1, "cpu"))


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        (
            5,
            [],
            r"branch_from=.*/trunk@5: .*/checkpoints has no checkpoint of step 5\. .*: 3, 4, 6",
        ),
        (3, ["recipe.stages.short.mixture={code:1}"], r"short\.mixture=.* another name, so that"),
        (3, ["recipe=decay"], r"^recipe\.stages\.decay\.tokens has no value\. Give recipe"),
        (3, ["init_from=model"], r"^init_from=model: a branch starts from the weights of branch_f"),
        (3, ["seed=1"], r"^seed=1: the order of .*trunk@3 has seed 7, and a branch continues it\."),
        (3, ["model.num_layers=1"], r"model\.num_layers=1: .*trunk@3 was trained with 2\."),
        (
            3,
            [*DECAY, "recipe.stages.decay.seq_len=256"],
            r"decay\.seq_len=256: the order of .* has atoms of 128",
        ),
    ],
)
def test_what_cannot_continue_the_trunk_is_refused(trunk, tmp_path, step, more, message):
    folder, _ = trunk
    with pytest.raises(InputError, match=message):
        preflight(composed(branch(folder, step, tmp_path / "branch", *more)), Job(1, "cpu"))


def test_a_branch_has_a_folder_of_its_own_and_one_trunk(trunk, tmp_path):
    folder, _ = trunk
    with pytest.raises(InputError, match=r"run_dir=.*trunk: this is the run that branch_from="):
        composed(branch(folder, 3, folder))
    with pytest.raises(InputError, match=r"branch_from=.*@3: a branch needs a folder of its own"):
        composed(["pretrain", f"branch_from={folder}@3"])
    with pytest.raises(InputError, match=r"branch_from=runs/trunk: expected <run folder>@<step>"):
        composed(["pretrain", "branch_from=runs/trunk", f"run_dir={tmp_path / 'branch'}"])
    with pytest.raises(InputError, match=r"recipe\.inherited=1: only a branch has stages"):
        composed(["pretrain", "recipe.inherited=1"])


def test_a_branch_knows_its_trunk_when_that_is_gone(trunk, tmp_path):
    folder, _ = trunk
    words = branch(folder, 3, tmp_path / "branch", *DECAY)
    before = composed(words)
    found = read_trunk(f"{folder}@3")
    (tmp_path / "branch").mkdir()
    record(found, tmp_path / "branch")
    folder.rename(tmp_path / "gone")
    assert composed(words) == before
    known = known_trunk(f"{folder}@3", tmp_path / "branch")
    assert (known.parents, known.config) == (found.parents, found.config)
    (tmp_path / "branch" / "trunk.json").unlink()
    with pytest.raises(InputError, match=r"has no checkpoint of step 3\. Give a step that has"):
        composed(words)
    copy = tmp_path / "branch" / "checkpoints" / "step_4"  # as restored from its mirror
    copy.mkdir(parents=True)
    write_manifest(copy, {"step": 4, "files": {}, "trunk": found.to_json()})
    assert composed(words) == before


def test_a_checkpoint_is_kept_while_a_branch_needs_it(trunk, tmp_path):
    folder, _ = trunk
    checkpoints, keep = folder / "checkpoints", Retention(last=1)
    assert [path.name for path in keep.choose(checkpoints)] == ["step_4", "step_3"]
    one, other = tmp_path / "one", tmp_path / "other"
    for path, step in ((one, 3), (other, 4)):
        path.mkdir()
        assert hold(str(folder), step, path) is None
        assert hold(str(folder), step, path) is None
    assert branches_of(folder) == [(one, 3), (other, 4)]
    assert keep.choose(checkpoints) == []
    own = one / "checkpoints" / "step_5"
    own.mkdir(parents=True)
    assert held_steps(folder) == {3, 4}  # not complete yet
    write_manifest(own, {"step": 5, "files": {}})
    assert [path.name for path in keep.choose(checkpoints)] == ["step_3"]
    other.rmdir()
    assert [path.name for path in keep.choose(checkpoints)] == ["step_4", "step_3"]
    (folder / "branches" / "damaged.json").write_text("{")
    assert branches_of(folder) == [(one, 3)]
    assert hold(str(tmp_path / "elsewhere"), 3, one) is None
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "branches").touch()  # no folder can be made
    assert "may delete its checkpoint of step 3" in str(hold(str(tmp_path / "closed"), 3, one))


def test_a_mirror_keeps_what_a_branch_needs_and_a_branch_starts_from_it(trunk, tmp_path, s3):
    folder, _ = trunk
    url, one, keep = f"s3://{BUCKET}/trunk", tmp_path / "one", Retention(last=1)
    one.mkdir()
    assert hold(str(folder), 3, one) is None
    mirror.upload_missing(folder / "checkpoints", url, keep)
    assert mirror.steps(url) == [6, 3]
    found = composed(branch(url, 3, tmp_path / "branch", *DECAY))
    expected = composed(branch(folder, 3, tmp_path / "branch", *DECAY))
    assert replace(found, branch_from=expected.branch_from) == expected
    assert read_trunk(f"{url}@3").parents[0]["run"] == url
    with pytest.raises(InputError, match=r"trunk@4: .* has no checkpoint of step 4\. .*: 3, 6"):
        composed(branch(url, 4, tmp_path / "branch", *DECAY))
    one.rmdir()
    mirror.upload_missing(folder / "checkpoints", url, keep)
    assert mirror.steps(url) == [6]
