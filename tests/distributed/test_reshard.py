"""I2 for every pair of layouts: stopped in one and resumed in another, across a change of stage."""

from __future__ import annotations

import shutil

import pytest

from tests.runs import arguments, ledger, records

LAYOUTS = {
    "one": {"dp_shard": 1},
    "fsdp2": {"dp_shard": 2},
    "hsdp2x2": {"dp_replicate": 2, "dp_shard": 2},
    "tp2": {"tp": 2},
    "cp2": {"cp": 2},
    "fsdp2_tp2": {"dp_shard": 2, "tp": 2},
}
STOP, END = 8, 12
"""The second stage, of sequences twice as long, begins after step 10."""


def run(warm, corpus, run_dir, layout, stop_after, **more):
    sizes = LAYOUTS[layout]
    changes = {f"parallel__{name}": size for name, size in sizes.items()}
    processes = 1
    for size in sizes.values():
        processes *= size
    settings = {"validation__every_steps": 0, "checkpoint__every_steps": STOP}
    command = arguments(
        corpus.folder, run_dir, stop_after=stop_after, **settings, **changes, **more
    )
    ended = warm.run(command, processes, run_dir.parent / f"{run_dir.name}-said")
    assert set(ended.codes) == {0}, ended.said
    return ended.said


@pytest.mark.parametrize("first", LAYOUTS)
def test_stopped_in_one_layout_and_resumed_in_all(first, warm, corpus, tmp_path):
    run(warm, corpus, tmp_path / "whole", first, END)
    run(warm, corpus, tmp_path / "stopped", first, STOP)
    whole = records(tmp_path / "whole")
    assert [record["seq_len"] for record in whole[STOP:]] == [64, 64, 128, 128]
    for second in LAYOUTS:
        run_dir = tmp_path / second
        shutil.copytree(tmp_path / "stopped", run_dir)
        said = run(warm, corpus, run_dir, second, END)
        assert f"resuming after step {STOP}" in said
        assert ledger(run_dir) == ledger(tmp_path / "whole")
        ours, theirs = ([r["loss"] for r in rs[STOP:]] for rs in (records(run_dir), whole))
        if second == first:
            assert ours == theirs
        else:
            assert ours[0] == pytest.approx(theirs[0], rel=1e-6), second
            assert ours == pytest.approx(theirs, rel=1e-5), second


def test_muons_momentum_is_carried_over(warm, corpus, tmp_path):
    run(warm, corpus, tmp_path / "whole", "fsdp2", END, optim__name="muon")
    run(warm, corpus, tmp_path / "run", "fsdp2", STOP, optim__name="muon")
    run(warm, corpus, tmp_path / "run", "tp2", END, optim__name="muon")
    ours, theirs = ([r["loss"] for r in records(tmp_path / name)] for name in ("run", "whole"))
    assert ours[STOP] == pytest.approx(theirs[STOP], rel=1e-6)
    assert ours == pytest.approx(theirs, rel=1e-5)
