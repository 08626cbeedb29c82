"""The CUDA backends agree with the CPU's float32 mask, for every head dim of the model family."""

import pytest
import torch

from model.attention.backends import attend, select_flash_kernel, usable_backends
from model.attention.mask import attention_mask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SEQ, BATCH = 256, 2
STARTS = torch.tensor([0, 100, 256, 300, 512, 512, 512], dtype=torch.int32)


@pytest.mark.parametrize("backend", ["sdpa", "cudnn", "varlen", "fa3", "fa4", "flash", "flex"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 120, 128])
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("documents", [False, True])
def test_backends_agree(backend, head_dim, window, documents):
    device = torch.device("cuda")
    if backend not in usable_backends(device, torch.bfloat16):
        pytest.skip(f"attention={backend} is not here")
    select_flash_kernel(backend)
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, SEQ, heads, head_dim) for heads in (6, 2, 2)]
    cpu = [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]
    grad = torch.randn(shapes[0], generator=generator).bfloat16().float()
    cu_seqlens = STARTS if documents else None

    def run(tensors, name, place):
        leaves = [tensor.detach().to(place).requires_grad_() for tensor in tensors]
        starts = None if cu_seqlens is None else cu_seqlens.to(place)
        longest = 212 if documents else None
        dtype = tensors[0].dtype
        mask = attention_mask(
            name, BATCH, SEQ, window, starts, place, dtype=dtype, max_seqlen=longest
        )
        q, k, v = leaves
        out = attend(q, k, v, mask)
        out.backward(grad.to(out))
        return [out, *(leaf.grad for leaf in leaves)]

    expected = run(cpu, "sdpa", torch.device("cpu"))
    found = run([tensor.bfloat16() for tensor in cpu], backend, device)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float().cpu(), theirs, rtol=3e-2, atol=3e-2)
