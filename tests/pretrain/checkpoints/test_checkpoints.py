"""Checkpoints: which are kept, when one is due, the writer process, the command's output."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.chat import ChatTemplate
from conf.errors import InputError
from model.families import FAMILIES
from model.families.folder import HFWeights, save_weights
from pretrain.checkpoints import files, read
from pretrain.checkpoints.command import CheckpointsConfig, checkpoints
from pretrain.checkpoints.interval import Clock, best_interval
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.writer_process import WriterError, WriterProcess
from tests.patience import limit
from tests.runs import arguments, records


def manifests(*about):
    """Newest first: (step, held-out loss, short-lived)."""
    known = {
        step: {"step": step, "validation_loss": loss, "short_lived": short}
        for step, loss, short in about
    }
    return dict(sorted(known.items(), reverse=True))


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Retention(last=1), {50, 60}),
        (Retention(last=2), {40, 50, 60}),
        (Retention(last=1, every=20), {20, 40, 50, 60}),
        (Retention(last=1, best=1), {10, 50, 60}),
        (Retention(last=1, best=2), {10, 30, 50, 60}),
    ],
)
def test_what_stays(keep, stay):
    known = manifests(
        *[(10, 1.0, False), (20, math.nan, False), (30, 2.0, False), (35, 0.5, True)],
        *[(40, 3.0, False), (50, math.nan, False), (60, None, True)],
    )
    gone = set(keep.expired(known))
    assert known.keys() - gone == stay


def lost_share(interval, cost, mttf):
    """Daly 2006, eq. 13 without the restart: share of time beyond the work itself."""
    return mttf / interval * (math.exp((interval + cost) / mttf) - 1) - 1


@pytest.mark.parametrize("cost", [1.0, 11.0, 300.0, 1500.0])
def test_the_interval_loses_the_least(cost):
    mttf = 3600.0
    best = min(
        (lost_share(interval, cost, mttf), interval) for interval in (1.002**n for n in range(5000))
    )
    found = best_interval(cost, mttf)
    assert lost_share(found, cost, mttf) <= best[0] * 1.005
    assert best_interval(8000, mttf) == mttf


def test_the_interval_of_a_danube_run_is_youngs():
    # 29.3 GB at 2 GB/s on one node that fails every 154 days; 16 nodes: 4.7 h and 71 min
    assert best_interval(11, 154 * 86400) == pytest.approx(4.7 * 3600, rel=0.02)
    assert best_interval(11, 9.6 * 86400) == pytest.approx(71 * 60, rel=0.02)


@pytest.mark.parametrize("slower", [1.0, 5.0, 0.2])
def test_a_clock_meets_its_time_though_steps_change(slower):
    now, pace, saves, looks = 0.0, 1.0, [], 0
    clock = Clock(0, now)
    for step in range(1, 4000):
        now += pace * (slower if step > 2000 else 1)
        if step == clock.look_at:
            looks += 1
            if clock.is_due(step, now, 300):
                saves.append(now)
                clock.saved(now)
    spans = [b - a for a, b in itertools.pairwise(saves)]
    assert len(spans) >= 5
    assert all(295 <= span <= 320 or slower != 1 for span in spans)
    assert sum(not 290 <= span <= 320 for span in spans) <= 1  # the one in which steps changed
    assert looks < 15 * len(saves)


def add(a, b):
    return a + b


def fail(text):
    raise ValueError(text)


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_call_aside_is_bounded_and_the_next_one_starts_afresh():
    writer = WriterProcess()
    try:
        assert writer.call(add, 1, 2, seconds=limit(20)) == 3
        with pytest.raises(WriterError, match="ValueError: no"):
            writer.call(fail, "no", seconds=limit(20))
        with pytest.raises(WriterError, match="the process that writes checkpoints died"):
            writer.call(end, seconds=limit(20))
        with pytest.raises(WriterError, match=r"did not answer in 0\.5 s"):
            writer.call(hang, seconds=0.5)
        assert writer.call(add, "a", "b", seconds=limit(20)) == "ab"
    finally:
        writer.close()


class Runtime:
    """Remembers which addresses are page-locked; refuses to lock more than `most` bytes."""

    def __init__(self, most=1 << 40):
        self.most, self.locked = most, {}

    def cudaHostRegister(self, start, size, flags):
        if size > self.most:
            raise RuntimeError("out of memory")
        self.locked[start] = size

    def cudaHostUnregister(self, start):
        del self.locked[start]


def reports_the_error_again(*size, device):
    assert device == "cuda"
    raise RuntimeError("out of memory")


def test_memory_that_grows_releases_its_page_lock(monkeypatch, capsys):
    runtime = Runtime(most=1 << 20)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", lambda error: None)
    monkeypatch.setattr(torch, "ones", reports_the_error_again)
    writer = WriterProcess()
    try:
        small = writer.memory(10_000, pinned=True)
        small[:3] = b"one"
        assert writer.memory(5_000, pinned=True) is small
        assert list(runtime.locked.values()) == [10_000]
        large = writer.memory(100_000, pinned=True)
        assert list(runtime.locked.values()) == [100_000]
        assert large[:3] == b"one"  # the same file
        # More than may be locked is used all the same.
        assert len(writer.memory(2 << 20, pinned=True)) == 2 << 20
        assert runtime.locked == {}
        assert "cannot be pinned (out of memory)" in capsys.readouterr().err
    finally:
        writer.close()


def test_weights_are_written_a_file_at_a_time(tmp_path):
    alive: list[weakref.ref] = []
    most = 0

    def tensors():
        nonlocal most
        for number in range(20):
            value = torch.full((1000,), float(number))
            alive.append(weakref.ref(value))
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"layers.{number}.weight", value
            del value

    save_weights(tmp_path, tensors(), torch.float32, FAMILIES["llama"], file_bytes=12_000)
    assert most <= 5  # three of a file, one beyond it, one under way
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 80_000
    weights = HFWeights(tmp_path, FAMILIES["llama"])
    for number in range(20):
        assert torch.equal(weights.read(f"layers.{number}.weight"), torch.full((1000,), number))


def train(warm, corpus, run_dir, **changes):
    settings = {"validation__every_steps": 0, "checkpoint__every_steps": 0} | changes
    ended = warm.run(arguments(corpus.folder, run_dir, **settings), 1, run_dir.parent / "said")
    assert ended.codes == [0], ended.said
    events = records(run_dir, "event")
    return [event for event in events if event["event"] == "checkpoint"]


@pytest.fixture(scope="module")
def trained(warm, corpus, tmp_path_factory):
    """A run that kept steps 12 (best), 16 and 20, and short-lived ones meanwhile."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    saved = train(
        warm, corpus, run_dir, validation__every_steps=4, checkpoint__every_steps=4,
        checkpoint__short_lived_every_steps=3, checkpoint__keep_best=1,
        checkpoint__keep_every=8, checkpoint__keep_last=1,
    )  # fmt: skip
    return run_dir, saved


def test_long_and_short_lived_ones(trained):
    run_dir, saved = trained
    steps = [int(event["path"].removeprefix("step_")) for event in saved]
    assert steps == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    gone = {name for event in saved for name in event["removed"]}
    assert {"step_3", "step_6", "step_9", "step_15", "step_18"} <= gone
    stayed = [files.step_of(path.name) for path in files.checkpoints_in(run_dir / "checkpoints")]
    losses = {r["step"]: r["loss"] for r in records(run_dir, "validation") if r["step"]}
    assert set(stayed) == {20, 16, 8, min(losses, key=lambda step: losses[step])}


def test_by_tokens(warm, corpus, tmp_path):
    saved = train(warm, corpus, tmp_path / "run", checkpoint__every_tokens=5 * 2048)
    assert [event["path"] for event in saved] == ["step_5", "step_10", "step_15", "step_20"]


def test_by_minutes(warm, corpus, tmp_path):
    saved = train(warm, corpus, tmp_path / "run", checkpoint__every_minutes=0.0001)
    assert len(saved) > 2


def test_by_dalys_rule(warm, corpus, tmp_path):
    changes = {"checkpoint__interval": "auto", "checkpoint__mttf_hours": 0.0002}
    saved = train(warm, corpus, tmp_path / "run", **changes)
    assert saved[0]["path"] == "step_10"  # the first is to be measured
    expected = best_interval(saved[0]["held_seconds"], 0.0002 * 3600)
    assert saved[0]["interval_seconds"] == pytest.approx(expected)


def command(folder, **settings):
    checkpoints(
        CheckpointsConfig(str(folder), chat_template=ChatTemplate("t", "{{ 1 }}"), **settings)
    )


def test_the_list_has_verdicts(trained, capsys):
    run_dir, _ = trained
    command(run_dir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["checkpoint", "tokens"]
    assert lines[1].startswith("step_20")
    assert lines[1].endswith("sizes match")
    command(run_dir / "checkpoints", do="verify")
    assert "verified" in capsys.readouterr().out
    metadata = run_dir / "checkpoints" / "step_16" / ".metadata"
    content = metadata.read_bytes()
    metadata.write_bytes(content[:-1] + b"x")
    command(run_dir)  # of the right size
    with pytest.raises(files.CheckpointError, match=r"step_16/\.metadata does not match its hash"):
        command(run_dir, do="verify")
    metadata.write_bytes(content)


def test_any_step_is_exported(trained, tmp_path):
    run_dir, _ = trained
    command(run_dir, do="export", step="16", out=str(tmp_path / "out"), dtype="float32")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    weights = dict(read.weights(run_dir / "checkpoints" / "step_16"))
    assert torch.equal(exported["model.embed_tokens.weight"], weights["embed_tokens.weight"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"do": "check"}, r"do=check: unknown choice"),
        ({"do": "export"}, r"do=export: an output folder is required"),
        ({"out": "x"}, r"out=x: do=list writes no output"),
        ({"folder": "nowhere"}, r"dir=nowhere: there is no checkpoint"),
        ({"folder": "s3://a/b", "do": "export", "out": "x"}, r"a mirror does not have the run"),
    ],
)
def test_what_is_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        command(settings.pop("folder", "nowhere"), **settings)
