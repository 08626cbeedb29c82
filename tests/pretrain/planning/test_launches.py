"""Micro-batches whose kernels take longer to launch than to run are reported."""

from __future__ import annotations

from pretrain.planning.launches import describe


def test_a_small_micro_batch_is_bound_by_launches():
    said = describe(layers=12, compiled=True, tokens=4096, gpu_seconds=0.02)
    assert said.startswith("parallel.micro_batch_tokens=4096: a micro-batch is about 720 kernels")
    assert "48 ms to launch and the GPU about 20 ms" in said
    assert "parallel.cuda_graphs=true" in said


def test_a_large_one_is_not():
    assert describe(layers=12, compiled=True, tokens=32768, gpu_seconds=0.16) == ""
