"""The backends that run forward on a CPU see the same keys, and batches do not recompile them."""

from __future__ import annotations

import pytest
import torch

from model.attention.backends import attend
from model.attention.mask import QueryRange, attention_mask
from pretrain.parallel.compile import compiled_graphs

CPU = torch.device("cpu")
STARTS = torch.tensor([0, 100, 256, 300, 512, 512], dtype=torch.int32)
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def tensors(head_dim):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 256, heads, head_dim, generator=generator) for heads in (6, 2, 2)]


@pytest.mark.parametrize("backend", ["flex", "cudnn"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 120, 128])
@torch.no_grad()
def test_a_backend_sees_what_sdpa_sees(backend, head_dim):
    q, k, v = tensors(head_dim)
    for window in (None, 64, 1):
        for starts in (None, STARTS):
            expected = attend(q, k, v, attention_mask("sdpa", 2, 256, window, starts, CPU))
            found = attend(q, k, v, attention_mask(backend, 2, 256, window, starts, CPU))
            torch.testing.assert_close(found, expected)
    # A part of the positions, as under context parallelism.
    pieces = [QueryRange(64, 128, 0), QueryRange(192, 256, 0)]
    part = q[:, :128]
    expected = attend(part, k, v, attention_mask("sdpa", 2, 256, None, STARTS, CPU, pieces))
    found = attend(part, k, v, attention_mask(backend, 2, 256, None, STARTS, CPU, pieces))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [1, 7, 64, 100, 255])
@pytest.mark.parametrize("seq", [256, 250])
def test_blocks_give_the_attention_and_gradients_of_sdpa(seq, window):
    """Sequences that blocks do not divide, documents, and parts of the positions with a halo."""
    starts = torch.tensor([0, 100, seq, seq + 7, 2 * seq, 2 * seq], dtype=torch.int32)
    q, k, v = (x[:, :seq].double().requires_grad_() for x in tensors(64))
    for begin, end in ((0, seq), (100, 180), (seq - 20, seq)):
        part = QueryRange(begin, end, max(0, begin - window + 1))
        parts = q[:, begin:end], k[:, part.first_key : end], v[:, part.first_key : end]
        found = []
        for backend in ("sdpa", "blocks"):
            mask = attention_mask(backend, 2, seq, window, starts, CPU, [part], dtype=q.dtype)
            out = attend(*parts, mask)
            found.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
        for of_sdpa, of_blocks in zip(*found, strict=True):
            torch.testing.assert_close(of_blocks, of_sdpa, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["flex", "sdpa", "cudnn", "blocks"])
@torch.no_grad()
def test_other_documents_compile_nothing_new(backend):
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    q, k, v = tensors(64)
    before = compiled_graphs()
    for first in (100, 101, 7):
        starts = STARTS.clone()
        starts[1] = first
        compiled(q, k, v, attention_mask(backend, 2, 256, 64, starts, CPU))
    assert compiled_graphs() == before + 1
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_kernels_for_documents_are_told_their_starts_and_longest(backend):
    (block,) = attention_mask(backend, 2, 256, 64, STARTS, CPU, max_seqlen=212).blocks
    assert block.cu_seqlens_q is not None
    assert block.cu_seqlens_k is not None
    assert torch.equal(block.cu_seqlens_q, STARTS)
    assert torch.equal(block.cu_seqlens_k, STARTS)
    # torch.compile refuses a tensor that is passed twice to an autograd.Function.
    assert block.cu_seqlens_k is not block.cu_seqlens_q
    assert (block.max_seqlen_q, block.max_seqlen_k) == (212, 212)
    part = QueryRange(192, 256, 129)
    (block,) = attention_mask(backend, 2, 256, 64, STARTS, CPU, [part], max_seqlen=212).blocks
    assert block.cu_seqlens_q is not None
    assert block.cu_seqlens_k is not None
    assert block.cu_seqlens_q.tolist() == [0, 0, 64, 64, 128, 128]
    assert block.cu_seqlens_k.tolist() == [0, 0, 127, 127, 254, 254]
    assert (block.max_seqlen_q, block.max_seqlen_k) == (64, 127)


@pytest.mark.parametrize("backend", ["sdpa", "cudnn"])
def test_one_document_per_sequence_needs_no_mask(backend):
    starts = torch.tensor([0, 256, 512], dtype=torch.int32)
    assert attention_mask(backend, 2, 256, None, starts, CPU).blocks[0].dense_mask is None
    # Without documents, all sequences share the mask of a window.
    windowed = attention_mask(backend, 2, 256, 64, starts, CPU, dtype=torch.bfloat16).blocks[0]
    assert windowed.dense_mask is not None
    assert windowed.dense_mask.shape == (1, 1, 256, 256)
    assert windowed.dense_mask.dtype == torch.bfloat16


@torch.no_grad()
def test_copies_of_keys_for_each_head_change_nothing():
    """For versions of torch without a kernel that takes a mask and grouped queries."""
    q, k, v = tensors(64)
    mask = attention_mask("sdpa", 2, 256, 64, STARTS, CPU)
    expected = attend(q, k, v, mask)
    mask.blocks[0].repeats_kv = True
    torch.testing.assert_close(attend(q, k, v, mask), expected)
