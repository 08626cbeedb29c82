"""Defects of processes, collectives and memory that only a GPU shows."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
import torch.distributed as dist

from pretrain.processes import barrier
from tests.hollow import harness
from tests.hollow.driver import recording
from tests.runs import arguments

SMALL = {key.replace(".", "__"): value for key, value in harness.SMALL.items()}


@pytest.mark.parametrize("precision", ["fp8", "fp8_rowwise"])
def test_tensor_parallel_ranks_send_no_scales_of_fp8(precision, rehearse, monkeypatch):
    """Uncompiled, which is quick to rehearse and refused otherwise."""
    monkeypatch.setattr("pretrain.checks.check_precision", lambda *_: None)
    sent = {}
    for one in ("bf16", precision):
        run = rehearse(ranks=4, parallel__tp=2, precision=one)
        sent[one] = run.step.collectives
        shutil.rmtree(run.config.run_dir)
    assert sent[precision] == sent["bf16"]


def test_nccl_is_connected_at_the_start_and_ranks_meet_without_the_gpu():
    with harness.processes_of(1) as processes:
        assert dist.group.WORLD is not None
        assert dist.group.WORLD.bound_device_id == processes.device
        with recording() as recorded:
            torch.ones(8, device=processes.device).add_(1)
            barrier()
    assert recorded.trace.kernels
    assert (recorded.trace.waits, recorded.trace.collectives.total()) == ([], 0)


def test_the_allocator_grows_its_segments(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    changes = SMALL | {"profile__steps": "[2]", "profile__memory": "true", "stop_after": 2}
    done = command(*arguments(corpus.folder, run_dir, **changes))
    assert done.returncode == 0, done.stderr
    (path,) = (run_dir / "profile").glob("memory_*.pickle")
    segments = pickle.loads(path.read_bytes())["segments"]
    assert segments
    assert all(segment["is_expandable"] for segment in segments)


def test_a_record_counts_memory_from_the_first_step_on(rehearse, monkeypatch):
    """The peak excludes the setup, such as the timing of attention."""
    from pretrain import setup

    build = setup.build_model

    def greedy(*arguments):
        torch.empty(8 << 30, dtype=torch.uint8, device="cuda")
        return build(*arguments)

    monkeypatch.setattr(setup, "build_model", greedy)
    record = rehearse().records()[-1]
    assert 0 < record["memory_peak_bytes"] < 1 << 30
    assert (record["allocator_retries"], record["allocator_ooms"]) == (0, 0)
