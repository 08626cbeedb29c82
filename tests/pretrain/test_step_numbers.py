"""The numbers of a step survive their way to the host, and laps cover work without gaps."""

from __future__ import annotations

import math
import time

import pytest
import torch

from pretrain.step_numbers import HostCopy, LapClock, StepNumbers

CPU = torch.device("cpu")


@pytest.mark.parametrize("norm", [0.25, math.inf, -0.0])
def test_numbers_keep_every_bit(norm):
    counts = torch.tensor([3 << 40, -(1 << 63), (1 << 63) - 1, 0, -1, 7])
    sums = torch.tensor([1e-30, 12345.678, 3e38])
    made = StepNumbers(counts, sums, torch.tensor(norm), torch.tensor(2.0))
    found = made.read()
    assert found.counts == counts.tolist()
    assert found.sums == sums.tolist()
    assert math.copysign(1, found.grad_norm) == math.copysign(1, norm)
    assert (found.grad_norm, found.verdict) == (norm, 2.0)
    assert made.read() == found  # a replay reads them before the loop does


def test_the_bits_of_numbers_that_are_not_numbers_can_be_compared():
    def bits(value):
        loss = torch.tensor([value])
        return StepNumbers(torch.ones(4).long(), loss, loss[0], loss[0]).bits()

    assert torch.equal(bits(math.nan), bits(math.nan))
    assert not torch.equal(bits(0.0), bits(-0.0))


def test_a_host_copy_of_the_host_is_the_tensor_itself():
    tensor = torch.arange(3)
    assert HostCopy(tensor).read()[0] is tensor


def test_laps_are_adjacent_and_leave_out_what_precedes_a_restart(monkeypatch):
    moments = iter([10.0, 11.5, 12.0, 20.0, 20.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = LapClock(CPU)
    laps = [clock.lap(), clock.lap()]
    clock.restart()  # after 8 s of something else
    laps.append(clock.lap())
    assert [lap.seconds() for lap in laps] == [1.5, 0.5, 0.25]
