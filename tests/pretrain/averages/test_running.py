"""The running average: its weights, skipped steps, and the exchange with the weights."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conf.errors import InputError
from pretrain.averages import running
from pretrain.averages.config import EmaConfig, check_ema
from pretrain.averages.running import HostAverage, RunningAverage, build
from tests.pretrain.test_no_sync import NoReads

DECAY = 0.9
CPU = torch.device("cpu")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))


def change(trained):
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))


def entry(trained):
    return {name: p.detach().double().clone() for name, p in trained.named_parameters()}


def expected(entries):
    """The weighted mean of all entries in float64, from the formula of the module."""
    weights = [DECAY ** (len(entries) - 1 - n) for n in range(len(entries))]
    return {
        name: sum(w * one[name] for w, one in zip(weights, entries, strict=True)) / sum(weights)
        for name in entries[0]
    }


def test_the_average_is_the_weighted_mean_of_the_entries_without_the_initial_weights():
    trained, entries = model(), []
    average = RunningAverage(trained.named_parameters(), DECAY, CPU)
    for _ in range(40):
        change(trained)
        average.add(torch.zeros(()))
        entries.append(entry(trained))
        for name, mean in expected(entries).items():
            torch.testing.assert_close(average.tensors[name].double(), mean, rtol=0, atol=2e-6)
    assert average.entries == 40
    assert all(value.dtype == torch.float32 for value in average.tensors.values())


def test_weights_after_a_skipped_step_do_not_enter():
    trained, entries = model(), []
    average = RunningAverage(trained.named_parameters(), DECAY, CPU)
    for skipped in (1.0, 0.0, 1.0, 1.0, 0.0, 0.0):
        change(trained)
        average.add(torch.tensor(skipped))
        if not skipped:
            entries.append(entry(trained))
    assert average.entries == 3
    for name, mean in expected(entries).items():
        torch.testing.assert_close(average.tensors[name].double(), mean, rtol=0, atol=2e-6)


def test_the_exchange_changes_no_bit_and_puts_back_after_an_error():
    trained = model()
    average = RunningAverage(trained.named_parameters(), DECAY, CPU)
    average.add(torch.zeros(()))
    change(trained)
    average.add(torch.zeros(()))
    weights, kept = entry(trained), {k: v.clone() for k, v in average.tensors.items()}

    def fail_inside():
        with average.in_model():
            for name, parameter in trained.named_parameters():
                assert torch.equal(parameter, kept[name])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter.double(), weights[name])
        assert torch.equal(average.tensors[name], kept[name])


def test_reset_starts_over():
    trained = model()
    average = RunningAverage(trained.named_parameters(), DECAY, CPU)
    for _ in range(3):
        change(trained)
        average.add(torch.zeros(()))
    change(trained)
    average.reset()
    assert average.entries == 0
    for name, parameter in trained.named_parameters():
        assert torch.equal(average.tensors[name], parameter)
    change(trained)
    average.add(torch.zeros(()))
    for name, parameter in trained.named_parameters():
        assert torch.equal(average.tensors[name], parameter)


def test_an_update_does_not_wait_for_the_device():
    trained = model()
    average = RunningAverage(trained.named_parameters(), DECAY, CPU)
    with NoReads():
        average.add(torch.zeros(()))
    assert average.entries == 1


class Later:
    """An event that has happened as soon as it is recorded."""

    recorded = 0

    def __init__(self, **_):
        pass

    def record(self):
        Later.recorded += 1

    def synchronize(self):
        assert Later.recorded


def test_an_average_on_the_host_equals_one_on_the_device(monkeypatch):
    waited: list[object] = []
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Event", Later)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(running, "_pinned", torch.empty_like)
    trained = model()
    here = RunningAverage(trained.named_parameters(), DECAY, CPU)
    host = HostAverage(trained.named_parameters(), DECAY)
    for skipped in (0.0, 1.0, 0.0, 0.0):
        change(trained)
        for average in (here, host):
            average.add(torch.tensor(skipped))
        host.before_update()  # the next change of the weights is after the copy
    assert len(waited) == Later.recorded == 4
    host.wait()
    assert host.entries == here.entries == 3
    for name, value in here.tensors.items():
        assert torch.equal(value, host.tensors[name])
    assert isinstance(build([("w", torch.ones(2))], DECAY, "cpu", CPU), RunningAverage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"ema.decay=1.0: expected 0 or more and less than 1"),
        ({"decay": -0.1}, r"ema.decay=-0.1"),
        ({"every_steps": 0}, r"ema.every_steps=0: expected 1 or more"),
        ({"device": "cuda"}, r"ema.device=cuda"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        EmaConfig(**settings)
    with pytest.raises(InputError, match=r"ema.every_steps=30: the run has 20 steps"):
        check_ema(EmaConfig(0.9, 30), 20)
    check_ema(EmaConfig(None, 30), 20)
    check_ema(EmaConfig(0.9, 20), 20)
