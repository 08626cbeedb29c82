"""Hooks: what happens around the steps."""

from __future__ import annotations

import gc
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.config import ProfileConfig
from pretrain.health.flight_recorder import turn_on_flight_recorder
from pretrain.hooks.garbage import Garbage
from pretrain.hooks.profile import Profile
from pretrain.hooks.recompiles import Recompiles
from pretrain.hooks.run_files import RunFiles
from pretrain.loader import attended_keys
from pretrain.processes import Processes
from pretrain.records import RecordLog, drop_steps_after, replace_lines
from tests.conftest import ROOT
from tests.runs import arguments, records


def test_drop_steps_after_removes_later_steps_and_damaged_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in range(1, 6)]
    junk = b'\n[3]\nnull\n\0\0\xff\n{"step": 3, "lo'  # what a power cut may leave
    path.write_bytes("\n".join(lines).encode() + junk)
    drop_steps_after(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    drop_steps_after(tmp_path / "absent.jsonl", 3)


def test_steps_are_marked_as_skipped_when_there_is_room_again(tmp_path):
    files = RunFiles(tmp_path)
    steps = [{"kind": "train", "step": step} for step in range(1, 7)]
    for record in steps[:4]:
        files.on_record(record)
    whole = tmp_path / "whole"
    (tmp_path / "ledger.jsonl").rename(whole)
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    files.on_record(steps[4])
    files.on_record({"kind": "event", "event": "rewind", "step": 5, "to_step": 3})
    assert len(whole.read_text().splitlines()) == 4
    whole.replace(tmp_path / "ledger.jsonl")
    files.on_record(steps[5])
    found = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in found if line.get("skipped") == "rewound at step 5"] == [4, 5]


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_keys_seen_counts_the_mask(window):
    starts = torch.tensor([0, 3, 20, 21, 40, 40, 40], dtype=torch.int32)
    position = torch.arange(40)
    document = torch.searchsorted(starts, position.int(), right=True)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or 40)) & (document[:, None] == document)
    assert attended_keys(starts, window) == int(seen.sum())


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
def test_compiled_blocks_give_the_same_losses_and_compile_once_a_stage(command, corpus, tmp_path):
    losses = {}
    changes: dict[str, Any] = {
        "recipe__stages__short__tokens": 8192,
        "recipe__stages__long__tokens": 8192,
    }
    changes |= {"validation__every_steps": 3}
    for compiled in ("false", "true"):
        run_dir = tmp_path / compiled
        changes["parallel__compile"] = compiled
        done = command(*arguments(corpus.folder, run_dir, **changes))
        assert done.returncode == 0, done.stderr
        losses[compiled] = [record["loss"] for record in records(run_dir)]
        events = [record["event"] for record in records(run_dir, "event")]
        assert events.count("stage") == 2
        assert "recompile" not in events
    assert len(losses["true"]) == 8
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


class Steps:
    """The view that hooks have of a trainer with stages of 6 and 4 steps."""

    def __init__(self, run_dir):
        self.step, self.published = 0, []
        self.processes = Processes(torch.device("cpu"), 0, 1)
        self.run_dir = run_dir

    @property
    def plan(self):
        return self

    def level(self, step):
        return SimpleNamespace(first_step=0 if step < 6 else 6)

    def publish(self, record):
        self.published.append((self.step, record["event"], record["graphs"]))

    def run(self, hooks, work, steps=10):
        for hook in hooks:
            hook.on_start(self)
        for step in range(1, steps + 1):
            for hook in hooks:
                hook.before_step(self)
            work(step)
            self.step = step
            for hook in hooks:
                hook.after_step(self)
        for hook in hooks:
            hook.on_end(self)


def test_what_is_compiled_late_in_a_stage_is_told(tmp_path):
    torch._dynamo.reset()
    doubled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    sizes = {1: 1, 2: 2, 4: 3, 7: 4, 8: 5, 10: 6}
    steps = Steps(tmp_path)
    steps.run([Recompiles()], lambda step: doubled(torch.ones(sizes.get(step, 1))))
    assert steps.published == [(4, "recompile", 1), (10, "recompile", 1)]
    torch._dynamo.reset()


def test_chosen_steps_are_traced(tmp_path):
    config = ProfileConfig(steps=[2, 3, 6], ranks=[0])
    hooks = [Profile(tmp_path, config, 0), Profile(tmp_path / "other", config, 1)]
    Steps(tmp_path).run(hooks, lambda step: torch.ones(step, step) @ torch.ones(step, step))
    assert not (tmp_path / "other").exists()
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == ["trace_steps_2-3_rank_0.json.gz", "trace_steps_6-6_rank_0.json.gz"]
    for name, steps in zip(names, ([2, 3], [6]), strict=True):
        with gzip.open(tmp_path / "profile" / name) as file:
            events = json.load(file)["traceEvents"]
        labels = {e["name"] for e in events if str(e["name"]).startswith("train step")}
        assert labels == {f"train step {step}" for step in steps}
        products = [e["args"]["Input Dims"][0] for e in events if e["name"] == "aten::mm"]
        assert products == [[step, step] for step in steps]


def test_a_trace_of_a_run(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    changes = {"profile__steps": "[2]", "stop_after": 3, "validation__every_steps": 0}
    done = command(*arguments(corpus.folder, run_dir, **changes))
    assert done.returncode == 0, done.stderr
    with gzip.open(run_dir / "profile" / "trace_steps_2-2_rank_0.json.gz") as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    assert {"train step 2", "aten::mm", "aten::_fused_adamw_"} <= names
    assert {"aten::bmm", "aten::_softmax"} <= names  # attention in blocks


def test_garbage_waits_for_its_step(tmp_path):
    collected = []

    class Cycle:
        def __init__(self, step):
            self.me, self.step = self, step

        def __del__(self):
            collected.append(self.step)

    def work(step):
        collected.append(f"step {step}")
        Cycle(step)

    assert gc.isenabled()
    Steps(tmp_path).run([Garbage(3)], work, steps=7)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    expected = ["step 1", "step 2", "step 3", 1, 2, 3, "step 4", "step 5", "step 6", 4, 5, 6]
    assert collected[:13] == [*expected, "step 7"]


def test_the_flight_recorder_is_on_and_the_users_settings_stay(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TORCH_FR_", "TORCH_NCCL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    turn_on_flight_recorder(str(tmp_path))
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/logs/flight_recorder_"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


def test_lines_without_room_wait_and_come_in_their_order(tmp_path, capsys):
    lines = RecordLog(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    lines.path.rename(tmp_path / "kept")
    lines.path.symlink_to("/dev/full")
    for step in (2, 3):
        lines.append({"step": step})
    assert capsys.readouterr().err.count("ALARM") == 1
    lines.path.unlink()
    (tmp_path / "kept").rename(lines.path)
    lines.append({"step": 4})
    found = [json.loads(line)["step"] for line in lines.path.read_text().splitlines()]
    assert found == [1, 2, 3, 4]


def test_lines_are_written_without_opening_the_file_again(tmp_path, monkeypatch):
    lines = RecordLog(tmp_path / "metrics.jsonl")
    opened: list[Path] = []
    real = os.open

    def counted(path: Path, *flags: int) -> int:
        opened.append(path)
        return real(path, *flags)

    monkeypatch.setattr(os, "open", counted)
    for step in range(5):
        lines.append({"step": step})
        assert json.loads(lines.path.read_text().splitlines()[-1]) == {"step": step}  # at once
    assert len(opened) == 1

    lines.path.rename(tmp_path / "metrics.jsonl.1")  # as a rotation of logs
    lines.append({"step": 5})
    replace_lines(lines.path, [b'{"step": 4}\n'])  # as a rewind marks steps
    lines.append({"step": 6})
    assert lines.path.read_text() == '{"step": 4}\n{"step": 6}\n'
    assert len((tmp_path / "metrics.jsonl.1").read_text().splitlines()) == 5
    lines.path.unlink()
    lines.append({"step": 7})
    assert lines.path.read_text() == '{"step": 7}\n'
    lines.close()
    lines.append({"step": 8})
    assert lines.path.read_text() == '{"step": 7}\n{"step": 8}\n'
    assert len(opened) == 5


def test_half_a_line_is_taken_back(tmp_path):
    """The file system has room for some bytes of the second line only."""
    script = """
import resource, signal
from pathlib import Path
from pretrain.records import RecordLog
lines = RecordLog(Path("metrics.jsonl"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
for step in (1, 2):
    lines.append({"step": step})
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
