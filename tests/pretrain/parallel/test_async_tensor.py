"""Asynchronous tensor parallelism is refused where it would not be."""

from __future__ import annotations

import pytest

from conf.errors import InputError
from pretrain.checks import Job, check_async_tensor_parallel
from pretrain.config import ParallelConfig

CPU, CUDA = Job(2, "cpu"), Job(2, "cuda")


@pytest.mark.parametrize(
    ("tp", "compiled", "device", "sentence"),
    [
        (1, True, CUDA, "but parallel.tp=1. Set"),
        (2, False, CUDA, "Add parallel.compile=true"),
        (2, True, CPU, "requires GPUs, but the run is on cpu"),
    ],
)
def test_what_it_needs(tp, compiled, device, sentence):
    config = ParallelConfig(tp=tp, compile=compiled, async_tp=True)
    with pytest.raises(InputError, match=sentence):
        check_async_tensor_parallel(config, device)


def test_torch_still_offers_it():
    """The name is private: the check says when a torch has dropped it."""
    check_async_tensor_parallel(ParallelConfig(tp=2, compile=True, async_tp=True), CUDA)
