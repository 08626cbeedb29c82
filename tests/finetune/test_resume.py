"""A tuning run that was stopped continues as if it had not been; the order it sees rows in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from transformers import TrainerCallback

from finetune import dpo as dpo_module
from finetune import run as run_module
from finetune import sft as sft_module
from finetune.batch_order import shuffled_indices
from finetune.checkpoints import last_checkpoint
from finetune.config import DpoConfig, SftConfig
from tests.conftest import ROOT
from tests.patience import limit

pytestmark = pytest.mark.slow

TRAINED = ("step", "loss", "grad_norm", "learning_rate", "tokens", "reward_margin")


def curve(out: Path) -> list[dict[str, Any]]:
    """The train and validation lines, without times."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {key: line[key] for key in ("kind", *TRAINED) if key in line}
        for line in lines
        if line["kind"] != "event"
    ]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


class StopAt(TrainerCallback):
    """Ends the run from outside at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped_at(step: int) -> Any:
    """Returns a `train` that ends at a step."""
    real = run_module.train

    def train(trainer: Any, *rest: Any) -> None:
        trainer.add_callback(StopAt(step))
        real(trainer, *rest)

    return train


@pytest.mark.parametrize("kind", ["sft", "sft packed", "dpo"])
def test_continues_bit_for_bit(
    kind: str, settings, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch, between two checkpoints."""
    common = {"epochs": 2, "checkpoint_every": 3, "validate_every": 2, "log_every": 1}
    settings_of: dict[str, Any] = common | {"batch_size": 10, "validation": settings().data}
    if kind == "sft packed":
        settings_of |= {"packing": True, "batch_size": 4}

    def config(out: str) -> SftConfig:
        if kind != "dpo":
            return settings(out=str(tmp_path / out), **settings_of)
        values = vars(settings(out=str(tmp_path / out), **settings_of))
        return DpoConfig(**(values | {"data": str(preferences), "validation": str(preferences)}))

    run: Any = dpo_module.dpo if kind == "dpo" else sft_module.sft
    run(config("whole"))
    steps = [line["step"] for line in curve(tmp_path / "whole") if line["kind"] == "train"]
    stop = 5
    assert max(steps) > stop

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", stopped_at(stop))
        with pytest.raises(KeyboardInterrupt):
            run(config("parts"))
    assert not (tmp_path / "parts").exists()
    checkpoint = last_checkpoint(tmp_path / "parts.tmp")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    (tmp_path / "parts.tmp" / "checkpoint-4").mkdir()  # a kill while it was being saved
    run(config("parts"))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not (tmp_path / "parts.tmp").exists()
    events = [json.loads(x) for x in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["kind"] == "event"] == ["start", "resume", "finish"]


def test_killed_process_continues(settings, command, tmp_path: Path) -> None:
    """SIGKILL to a run of two processes; what one process without a stop gives is the same."""
    config = settings(epochs=12, out=str(tmp_path / "one"))
    sft_module.sft(config)
    options = [f"model={config.model}", f"data={config.data}", f"out={tmp_path / 'two'}"]
    options += ["device=cpu", "precision=fp32", "learning_rate=1e-2", "epochs=12", "log_every=1"]
    options += ["checkpoint_every=2"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", "2", "-m", "finetune", "sft", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(start, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + limit(200)
    while last_checkpoint(tmp_path / "two.tmp") is None and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    assert not (tmp_path / "two").exists()
    done = command("finetune", "sft", *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming from") == 1
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_other_inputs_begin_anew(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of other settings is not continued from."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", stopped_at(3))
        with pytest.raises(KeyboardInterrupt):
            sft_module.sft(settings(checkpoint_every=2))
    sft_module.sft(settings(max_steps=1, seed=1))
    record = json.loads((tmp_path / "chat" / "sft.json").read_text())
    assert (record["steps"], record["first_loss"]) == (1, record["loss"])


@settings_of_hypothesis(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
    by_length=st.booleans(),
)
def test_order(lengths: list[int], batch_size: int, epoch: int, by_length: bool) -> None:
    """Every row once an epoch, the same for the same seed; in batches of like length."""
    indices = shuffled_indices(lengths, batch_size, 5, epoch, by_length=by_length)
    assert sorted(indices) == list(range(len(lengths)))
    assert indices == shuffled_indices(lengths, batch_size, 5, epoch, by_length=by_length)
    if by_length:
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        ranges = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches)
        assert all(low[1] <= high[0] for low, high in pairwise(ranges))


def test_order_differs_by_epoch_and_seed() -> None:
    orders = {
        tuple(shuffled_indices([3] * 40, 8, seed, e, by_length=True))
        for seed in (0, 7)
        for e in (0, 1, 2)
    }
    assert len(orders) == 6
