"""What happens beside the steps."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from data_pipeline.batches import IGNORED, held_out_batches
from pretrain.hooks.progress import duration
from pretrain.hooks.run_files import keep_steps
from pretrain.hooks.validation import deal
from pretrain.loader import keys_seen
from tests.runs import arguments, records


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (200, "3m20s"), (7500, "2h05m"), (355_000, "4d02h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_keep_steps_cuts_off_later_steps_and_half_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 3, "lo')
    keep_steps(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    keep_steps(tmp_path / "absent.jsonl", 3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_validation_batches_are_dealt_evenly_without_losing_one(corpus, ranks):
    batches = list(held_out_batches(corpus, "code", 64, 4, 1300))
    dealt = [deal(batches, rank, ranks) for rank in range(ranks)]
    assert len({len(mine) for mine in dealt}) == 1
    targets = sum(int((b.labels != IGNORED).sum()) for mine in dealt for b in mine)
    assert targets == sum(int((b.labels != IGNORED).sum()) for b in batches)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_keys_seen_counts_the_mask(window):
    starts = torch.tensor([0, 3, 20, 21, 40, 40, 40], dtype=torch.int32)
    position = torch.arange(40)
    document = torch.searchsorted(starts, position.int(), right=True)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or 40)) & (document[:, None] == document)
    assert keys_seen(starts, window) == int(seen.sum())


def test_wandb_keeps_one_run_over_a_restart(command, corpus, tmp_path):
    """Offline where there is no key, with the same id after the restart."""
    run_dir = tmp_path / "run"
    changes = {"logger": "wandb", "checkpoint__every_steps": 4}
    quiet = {"WANDB_API_KEY": "", "NETRC": os.devnull}
    for stop in (4, 8):
        done = command(*arguments(corpus.folder, run_dir, stop_after=stop, **changes), **quiet)
        assert done.returncode == 0, done.stderr
    folders = [path.name for path in (run_dir / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert len({name.rsplit("-", 1)[1] for name in folders}) == 1
    assert [record["step"] for record in records(run_dir)] == list(range(1, 9))


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_compiled_blocks_give_the_same_losses(command, corpus, tmp_path):
    losses = {}
    for compiled in ("false", "true"):
        run_dir = tmp_path / compiled
        done = command(*arguments(corpus.folder, run_dir, parallel__compile=compiled, stop_after=3))
        assert done.returncode == 0, done.stderr
        losses[compiled] = [record["loss"] for record in records(run_dir)]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
