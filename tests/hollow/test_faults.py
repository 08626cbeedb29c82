"""Each check of the lane fails when its fault is put in by hand."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import triton
import triton.language as tl

import model.layers
from pretrain.trainer import Trainer
from tests.hollow.cases import HELD
from tests.hollow.checks import check_never_waits, check_spills, fresh_kernels, kernels_in
from tests.hollow.numbers import check_numbers


def before_the_update(monkeypatch, fault) -> None:
    """Calls `fault(trainer)` in each step, as a hook of the trainer would be."""
    step = Trainer.train_step

    def faulty(self):
        fault(self)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", faulty)


@pytest.mark.parametrize(
    "fault",
    [
        lambda trainer: torch.cuda.synchronize(),
        lambda trainer: trainer.sources.sum().item(),
        lambda trainer: torch.cuda.current_stream().synchronize(),
    ],
    ids=["synchronize", "item", "stream"],
)
def test_a_wait_is_found(fault, rehearse, monkeypatch):
    before_the_update(monkeypatch, fault)
    with pytest.raises(AssertionError, match="wait"):
        check_never_waits(rehearse())


def test_a_pageable_copy_is_found(rehearse, monkeypatch):
    before_the_update(monkeypatch, lambda trainer: torch.ones(64).to("cuda", non_blocking=True))
    with pytest.raises(AssertionError, match="h2d-pageable 256"):
        check_never_waits(rehearse())


def test_a_further_collective_is_found(rehearse, monkeypatch):
    before_the_update(monkeypatch, lambda trainer: dist.all_reduce(torch.ones(4, device="cuda")))
    with pytest.raises(AssertionError, match=r"\+collective all_reduce"):
        check_numbers("fsdp", rehearse(**HELD["fsdp"]).step, torch.__version__)


def test_a_doubled_attention_kernel_is_found(rehearse, monkeypatch):
    attend = model.layers.attend

    def twice(*arguments):
        attend(*arguments)
        return attend(*arguments)

    monkeypatch.setattr(model.layers, "attend", twice)
    with pytest.raises(AssertionError, match=r"\+kernel flash_fwd_kernel"):
        check_numbers("one", rehearse(**HELD["one"]).step, torch.__version__)


@triton.jit
def scale_by_sum(x, y, size: tl.constexpr):
    """Needs 128 registers per thread for its block, of which its launch allows too few."""
    block = tl.load(x + tl.arange(0, size))
    tl.store(y + tl.arange(0, size), block * tl.sum(block))


def test_a_spill_is_found(tmp_path):
    x = torch.ones(16384, device="cuda")
    with fresh_kernels(tmp_path):
        scale_by_sum[(1,)](x, torch.empty_like(x), 16384, num_warps=4, maxnreg=32)
    with pytest.raises(AssertionError, match="scale_by_sum"):
        check_spills(kernels_in(tmp_path), {})
