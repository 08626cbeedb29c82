"""The commands of a study's runs, also of branches whose trunk has not run yet."""

from __future__ import annotations

import pytest

from conf.errors import InputError
from launch.studies.commands import commands_of, step_at
from launch.studies.costs import total
from launch.studies.kind import StudyRun


def test_one_trunk_gives_several_budgets(make, base):
    study = make(vary=["optim.learning_rate=0.003"], budgets=[12_000, 20_000])
    study.look()
    trunk, first, second = study.commands.values()
    assert "checkpoint.keep_steps=[5,8]" in trunk.overrides
    assert first.overrides[0] == f"branch_from={base.run_dir(trunk.run.name)}@5"
    assert not any(one.startswith(("model", "optim", "data")) for one in first.overrides)
    assert [c.plan.total_tokens for c in (trunk, first, second)] == [16_384, 12_288, 20_480]
    assert [c.tokens for c in (trunk, first, second)] == [16_384, 2048, 4096]
    assert second.settings.optim.learning_rate == 0.003
    assert [stage.name for stage in second.plan.stages] == ["short", "decay"]
    costs = study.planned()
    assert total(costs.values()).tokens == 16_384 + 2048 + 4096
    assert costs[first.run.name].flops < costs[second.run.name].flops < costs[trunk.run.name].flops


def test_a_fork_is_at_the_nearest_step(base):
    plan = base.plan()
    assert [step_at(plan, tokens) for tokens in (0, 2000, 3000, 3100, 10**9)] == [1, 1, 1, 2, 10]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (StudyRun("a/b", (), {}), "cannot have the name 'a/b'"),
        (StudyRun("a", ("optim.learning_rat=1",), {}), "run a: optim.learning_rat"),
    ],
)
def test_an_impossible_run_is_named(base, run, message):
    with pytest.raises(InputError, match=message):
        commands_of(base, [run])


def test_a_name_is_given_once(base):
    with pytest.raises(InputError, match="two runs have the name 'a'"):
        commands_of(base, [StudyRun("a", (), {}), StudyRun("a", ("seed=1",), {})])
