"""The backend is the one that ran fastest, and every rank takes the same."""

from __future__ import annotations

import json

import pytest
import torch

from conf.errors import InputError
from model.attention import backends
from model.attention.backends import check_backend, usable_backends
from pretrain import attention_choice
from pretrain.attention_choice import AttentionWork, fastest
from tests.model.shapes import tiny
from tests.runs import arguments, records

CPU = torch.device("cpu")
STARTS = torch.tensor([0, 100, 256, 300, 512, 512], dtype=torch.int32)


def test_the_fastest_of_real_attention_is_taken(monkeypatch):
    """`slow` does the same work eight times, on a clock that counts how often it is done."""
    now = [0.0]
    monkeypatch.setattr(attention_choice.time, "perf_counter", lambda: now[0])

    def work(name):
        real = AttentionWork("sdpa", tiny(head_dim=16), (2, 256), 1, STARTS, CPU, torch.float32)

        def once():
            real()
            now[0] += 1

        return once if name == "sdpa" else lambda: [once() for _ in range(8)]

    timing = fastest(["slow", "sdpa"], work)
    assert timing.backend == "sdpa"
    assert timing.seconds == {"slow": 8, "sdpa": 1}
    assert timing.failed == {}


def test_what_cannot_run_is_passed_over_and_its_reason_kept():
    def work(name):
        if name == "cannot":
            raise RuntimeError("head dim 80 is not taken\nlong trace")
        return lambda: None

    timing = fastest(["cannot", "can"], work)
    assert timing.backend == "can"
    assert timing.failed == {"cannot": "head dim 80 is not taken"}
    with pytest.raises(RuntimeError, match="every attention backend failed"):
        fastest(["cannot", "cannot"], work)


def test_a_backend_that_does_not_fit_is_not_taken(monkeypatch):
    """The fast one keeps 1,000 bytes more than the slow one."""
    monkeypatch.setattr(attention_choice, "seconds_of", lambda run: run.seconds)

    class Measured(AttentionWork):
        def __init__(self, name):
            self.seconds = {"fast": 1.0, "slow": 2.0}[name]
            self.bytes = {"fast": 5000, "slow": 4000}[name]

        def kept_bytes(self):
            return self.bytes

    assert fastest(["fast", "slow"], Measured, spare=1000).backend == "fast"
    timing = fastest(["fast", "slow"], Measured, spare=999)
    assert timing.backend == "slow"
    assert timing.kept_bytes == {"fast": 5000, "slow": 4000}
    assert timing.failed == {"fast": "keeps 1,000 bytes more than others, which do not fit"}
    # If even the leanest does not fit, the plan was wrong, and the run tries it all the same.
    assert fastest(["fast", "slow"], Measured, spare=-1).backend == "slow"


def test_one_candidate_is_not_timed():
    timing = fastest(["sdpa"], lambda name: pytest.fail("timed"))
    assert (timing.backend, timing.seconds) == ("sdpa", {})


def test_what_is_usable_on_the_cpu():
    assert usable_backends(CPU, torch.bfloat16) == ["sdpa", "blocks"]
    for name in ("sdpa", "blocks"):
        check_backend(name, CPU, torch.float32)
    with pytest.raises(
        InputError, match=r"attention=varlen: .* not support this backend on cpu in bfloat16"
    ):
        check_backend("varlen", CPU, torch.bfloat16)


def test_newer_flash_kernels_need_their_package_and_gpu(monkeypatch):
    installed = {"flash_attn_interface"}
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    for major, found in ((8, False), (9, True), (10, False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, major=major: (major, 0))
        assert backends._has_flash_kernel("fa3", torch.device("cuda")) is found
        assert not backends._has_flash_kernel("fa4", torch.device("cuda"))
    installed.add("flash_attn.cute")
    assert backends._has_flash_kernel("fa4", torch.device("cuda"))


def test_a_run_records_its_choice_by_sequence_length(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=1), processes=2)
    assert done.returncode == 0, done.stderr
    env = json.loads((run_dir / "env.json").read_text())
    assert {length: found["backend"] for length, found in env["attention"].items()} == {
        "64": "blocks",
        "128": "blocks",
    }
    events = [r for r in records(run_dir, "event") if r["event"] == "attention"]
    assert [event["seq_len"] for event in events] == [64, 128]
