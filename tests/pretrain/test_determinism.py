"""Settings that need equal bits are refused where a GPU's kernels do not promise them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from pretrain.determinism import check_deterministic, promises_bits, set_determinism
from tests.runs import settings


def config(**changes):
    return settings("data", Path("run"), **changes)


def test_replay_on_a_gpu_needs_deterministic_kernels():
    run = config(health__replay_steps="[3]")
    check_deterministic(run, "cpu")
    with pytest.raises(InputError, match=r"health\.replay_steps=\[3\]: .* Add deterministic=true"):
        check_deterministic(run, "cuda")
    check_deterministic(config(health__replay_steps="[3]", deterministic="true"), "cuda")


def test_a_backend_without_a_fixed_order_is_refused():
    run = config(parallel__attention="cudnn", deterministic="true")
    with pytest.raises(InputError, match=r"parallel\.attention=cudnn with deterministic=true"):
        check_deterministic(run, "cuda")
    check_deterministic(config(parallel__attention="cudnn"), "cuda")


def test_what_promises_bits():
    assert promises_bits(config(), "cpu")
    assert not promises_bits(config(), "cuda")
    assert promises_bits(config(deterministic="true"), "cuda")


def test_torch_is_told_and_told_again(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch._inductor.config, "deterministic", False, raising=False)
    try:
        set_determinism(True, "cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        set_determinism(False, "cuda")
    assert not torch.are_deterministic_algorithms_enabled()
