"""Defects of attention that only a CUDA device shows."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from model.attention import backends
from model.attention import mask as mask_module
from model.attention.backends import attend
from model.attention.mask import attention_mask
from tests.hollow.driver import recording

CUDA = torch.device("cuda")
LONG = {
    "recipe__stages__short__seq_len": 2048,
    "recipe__stages__long__seq_len": 2048,
    "model__max_seq_len": 2048,
    "parallel__micro_batch_tokens": 4096,
    "validation__tokens": 4096,
}


class _FlashAttention(torch.autograd.Function):
    """Takes the arguments of flash-attn's function, and returns something of the right shape."""

    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        ctx.save_for_backward(q, k, v)
        return q.clone()

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        return (grad + q, torch.zeros_like(k), torch.zeros_like(v), *[None] * 4)


def flash_attn_varlen_func(q, k, v, *lengths, causal, window_size, deterministic):
    assert causal
    assert not deterministic
    return _FlashAttention.apply(q, k, v, *lengths)


@pytest.fixture
def flash_attn(monkeypatch):
    """A stand-in for the package, which is built for a GPU."""
    module = types.ModuleType("flash_attn")
    monkeypatch.setattr(module, "flash_attn_varlen_func", flash_attn_varlen_func, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    backends._flash_attn_function.cache_clear()
    yield
    backends._flash_attn_function.cache_clear()


def test_compiled_flash_attention_trains(rehearse, flash_attn):
    """Failed at the first step: "autograd.Function.apply: duplicate tensor input"."""
    run = rehearse(parallel__attention="flash", parallel__compile="true")
    assert len(run.records()) == 3


def test_thread_blocks_are_those_of_real_documents(rehearse):
    """The kernel was given 133 documents of up to 2,048 tokens, for some 40 shorter ones here."""
    run = rehearse(
        **LONG | {"parallel__micro_batch_tokens": 8192}, recipe__global_batch_tokens=8192
    )
    launches, blocks = (
        counter["flash_fwd_kernel"] for counter in (run.step.kernels, run.step.blocks)
    )
    model, stage = run.config.model, run.trainer.plan.stages[0]
    (length,) = {run.trainer.loader.reader.document_tokens[0]}
    tokens = run.config.parallel.micro_batch_tokens
    documents = tokens / stage.seq_len + tokens / length
    tiles = stage.seq_len // 128
    assert blocks / launches < 1.5 * documents * tiles / 2 * model.num_heads


def test_no_copy_from_pageable_memory(rehearse):
    """The counts of a step were copied from memory that is not pinned."""
    run = rehearse(steps=5)
    assert [copy for copy in run.loop.pageable if copy.startswith("h2d")] == []


@pytest.mark.parametrize("attention", ["sdpa", "cudnn"])
def test_layers_share_one_mask(rehearse, attention):
    """Every layer kept its own conversion of the mask, of 32 MiB here, until the backward pass."""
    longer = {key: 4096 for key in LONG if "seq_len" in key}
    sizes = []
    for layers in (2, 6):
        run = rehearse(**LONG | longer, parallel__attention=attention, model__num_layers=layers)
        sizes.append(run.peak_bytes)
    assert (sizes[1] - sizes[0]) / 4 < 4096 * 4096 * 2


def test_selective_checkpointing_keeps_flex_attention(rehearse):
    """Each forward kernel ran twice, as with full recomputation."""
    run = rehearse(parallel__attention="flex", parallel__activation_checkpointing="selective")
    micro_batches = 4096 // run.config.parallel.micro_batch_tokens
    forward = [name for name in run.step.kernels if "flex_attention" in name]
    launches = sum(run.step.kernels[name] for name in forward if "backward" not in name)
    assert launches == run.config.model.num_layers * micro_batches


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_masks_of_long_sequences_are_made_in_little_memory(attention):
    """Distances in int64 took 3 GB at 16,384 tokens, in each micro-batch."""
    starts = torch.tensor([0, 5000, 16384, 16384], dtype=torch.int32, device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mask = attention_mask(attention, 1, 16384, 4096, starts, CUDA, dtype=torch.bfloat16)
    assert mask.blocks
    assert torch.cuda.max_memory_allocated() - before < 1.1 * 2**30


@pytest.mark.parametrize("takes_groups", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mask_and_grouped_queries_do_not_materialize_the_scores(dtype, takes_groups, monkeypatch):
    """The scores would be (heads, seq, seq) in float32. Older versions of torch do so."""
    if not takes_groups:
        monkeypatch.setattr(mask_module, "masked_kernel_groups", lambda device: False)
    starts = torch.tensor([0, 500, 1024, 1024], dtype=torch.int32, device=CUDA)
    mask = attention_mask("sdpa", 1, 1024, None, starts, CUDA, dtype=dtype)
    assert mask.blocks[0].repeats_kv is not mask_module.masked_kernel_groups(CUDA)
    q, k, v = (torch.zeros(1, 1024, n, 64, dtype=dtype, device=CUDA) for n in (8, 2, 2))
    with recording() as recorded:
        attend(q.requires_grad_(), k, v, mask).sum().backward()
    kernels = recorded.trace.kernels
    assert [name for name in kernels if "fmha_cutlassF" in name or "cudnn" in name]
    assert not [name for name in kernels if "softmax" in name.lower()]


def test_a_resumed_run_keeps_its_backends(rehearse):
    """Backends were timed again at each start, so that noise could change the bits of a run."""
    first = rehearse(steps=2, checkpoints=True, parallel__attention="auto")
    assert first.trainer.attention
    assert all(timing.seconds for timing in first.trainer.attention.values())
    again = rehearse(steps=3, checkpoints=True, parallel__attention="auto")
    assert len(again.records()) == 3
    for key, timing in again.trainer.attention.items():
        assert timing.resumed
        assert timing.backend == first.trainer.attention[key].backend


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel__attention": "varlen"},
        {"parallel__attention": "sdpa"},
        {"parallel__attention": "flex"},
        {"ranks": 4, "parallel__tp": 2},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_all_kernels_of_a_step_have_a_deterministic_form(rehearse, changes):
    try:
        run = rehearse(deterministic="true", **changes)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(run.records()) == 3


def test_documents_are_joined(rehearse):
    """Plain causal attention: one document per sequence for the kernel, and no mask for cuDNN."""
    changes = {"model__sliding_window": None, "recipe__stages__short__documents": "joined"}
    run = rehearse(**LONG, **changes)
    rows = 4096 // 2048
    launches, blocks = (
        counter["flash_fwd_kernel"] for counter in (run.step.kernels, run.step.blocks)
    )
    assert blocks / launches == rows * run.config.model.num_heads * 2048 / 128
