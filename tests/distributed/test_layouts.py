"""I1 and I6: a layout takes the same steps on the same tokens, across a change of stage.

`test_parity` has more layouts.
"""

from __future__ import annotations

import pytest

from tests.runs import arguments, ledger, records

LAYOUTS = {
    "replicate2": (2, {"parallel__dp_replicate": 2, "parallel__dp_shard": 1}),
    "fsdp2_tp2": (4, {"parallel__tp": 2}),
    "other_micro_batch": (2, {"parallel__micro_batch_tokens": 256}),
}


@pytest.fixture(scope="module")
def single(command, corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("single") / "run"
    done = command(*arguments(corpus.folder, run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_single_process_curve(layout, single, command, corpus, tmp_path):
    processes, changes = LAYOUTS[layout]
    run_dir = tmp_path / layout
    done = command(*arguments(corpus.folder, run_dir, **changes), processes=processes)
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(single)
    expected, found = records(single), records(run_dir)
    assert len(expected) == len(found) == 20
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["consumed_tokens"] == theirs["consumed_tokens"]
    for ours, theirs in zip(
        records(run_dir, "validation"), records(single, "validation"), strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        tokens = [{s: v["tokens"] for s, v in r["sources"].items()} for r in (ours, theirs)]
        assert tokens[0] == tokens[1]


def test_the_loss_falls_and_the_digests_differ(single):
    losses = [record["loss"] for record in records(single)]
    assert losses[-1] < losses[0] - 1.5
    assert len({line["digest"] for line in ledger(single)}) == 20
    for record in records(single):
        assert record["source_loss"].keys() == {"code", "prose"}
        lowest, highest = sorted(record["source_loss"].values())
        assert lowest < record["loss"] < highest
        assert record["memory_peak_bytes"] > 1e8


def test_tied_embeddings_under_tensor_parallel(command, corpus, tmp_path):
    losses = {}
    for processes, tp in ((0, 1), (2, 2)):
        run_dir = tmp_path / f"tp{tp}"
        done = command(
            *arguments(
                corpus.folder, run_dir, model__tie_embeddings="true", parallel__tp=tp, stop_after=5
            ),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
        losses[tp] = [record["loss"] for record in records(run_dir)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)


def test_bf16_trains_like_fp32(single, command, corpus, tmp_path):
    done = command(*arguments(corpus.folder, tmp_path / "bf16", precision="bf16"), processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = records(tmp_path / "bf16"), records(single)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2e-3)
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=2e-2)
