"""A process finds its GPU and configures it; torch's answers are replaced by those of the test."""

from __future__ import annotations

import os

import pytest
import torch

from conf.errors import InputError
from pretrain.processes import ALLOCATOR, own_gpu, set_allocator_default


def test_a_rank_without_a_gpu_says_which_one_it_lacks(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpu() == torch.device("cuda", 1)
    monkeypatch.setenv("RANK", "10")
    monkeypatch.setenv("LOCAL_RANK", "2")
    sentence = "device=cuda: rank 10 needs GPU 2, but this machine has 2. Start at most 2 processes"
    with pytest.raises(InputError, match=sentence) as caught:
        own_gpu()
    assert caught.value.every_rank


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_settings_of_the_allocator_are_the_users_if_there_are_any(name, monkeypatch):
    for one in ALLOCATOR:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    set_allocator_default()
    assert [one for one in ALLOCATOR if one in os.environ] == [name]
    assert os.environ[name] == "max_split_size_mb:128"
    monkeypatch.delenv(name)
    monkeypatch.setenv(ALLOCATOR[0], "")  # so that it is removed after the test
    del os.environ[ALLOCATOR[0]]
    set_allocator_default()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
