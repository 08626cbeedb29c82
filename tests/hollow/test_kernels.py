"""Kernels compiled for sm_90 at Danube's shape: none spills more registers than its budget."""

from __future__ import annotations

import pytest
import torch

from model.loss import linear_cross_entropy, losses_and_gradient
from tests.hollow.checks import check_spills, fresh_kernels, kernels_in

BLOCK = {
    "parallel__compile": "true",
    "model__hidden_size": 2560,
    "model__intermediate_size": 6912,
    "model__num_layers": 1,
    "model__num_heads": 32,
    "model__num_kv_heads": 8,
    "model__head_dim": 80,
    "steps": 1,
}
BUDGETS = {
    "block": ({}, {}),
    "fp8": ({"precision": "fp8"}, {}),
    # Under torch 2.11, the backward pass of RMSNorm together with the casts spills 24 bytes.
    "fp8_rowwise": ({"precision": "fp8_rowwise"}, {"fused_rms_norm_backward__scaled_mm": 32}),
    # The backward pass of head size 80, which is padded to 128.
    "flex": ({"parallel__attention": "flex"}, {"flex_attention_backward": 512}),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_a_compiled_block_spills_within_its_budget(case, rehearse, tmp_path):
    changes, budget = BUDGETS[case]
    with fresh_kernels(tmp_path / "kernels"):
        rehearse(**BLOCK, **changes)
    kernels = kernels_in(tmp_path / "kernels")
    check_spills(kernels, budget)
    assert len(kernels) > 5
    assert max(kernel.registers for kernel in kernels) <= 255


def test_the_loss_spills_nothing(tmp_path):
    x = torch.randn(4096, 2560, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(32000, 2560, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 32000, (4096,), device="cuda")
    compiled = torch.compile(losses_and_gradient, fullgraph=True, dynamic=False)
    with fresh_kernels(tmp_path / "kernels"):
        linear_cross_entropy(x, weight, labels, compiled=compiled)[0].backward()
    check_spills(kernels_in(tmp_path / "kernels"), {})
