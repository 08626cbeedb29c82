"""Backends of causal grouped-query attention under an `AttentionMask`.

| backend | kernel | where |
|---|---|---|
| sdpa | torch's scaled_dot_product_attention, with a dense mask unless plain causal | all |
| blocks | matrix products over blocks of a sliding window (`windowed.py`) | all |
| cudnn | sdpa, with cuDNN's kernel preferred | CUDA, 16-bit |
| flex | FlexAttention (`flex.py`) | CUDA |
| varlen | torch's variable-length attention | CUDA, 16-bit |
| fa3 | `varlen` with FlashAttention 3 (package flash_attn_interface) | Hopper, 16-bit |
| fa4 | `varlen` with FlashAttention 4 (package flash-attn-4) | Hopper and Blackwell, 16-bit |
| flash | FlashAttention 2 (package flash-attn) | CUDA, 16-bit |

A window of W tokens includes the query itself. FlashAttention counts only the keys to its left, so
its `window_size` is (W - 1, 0).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import InputError, one_of
from model.attention.mask import AttentionMask, QueryBlock
from model.attention.windowed import attend_blocks


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Returns attention of q over k and v, (batch, seq, heads, head_dim).

    Args:
        q: Queries, (batch, seq, heads, head_dim).
        k: Keys, (batch, seq, kv_heads, head_dim).
        v: Values, shaped like the keys.
        mask: The keys that each query sees, and the backend to use.
    """
    if mask.fetch is not None:
        k, v = mask.fetch(k, v)
    backend = BACKENDS[mask.backend]
    if len(mask.blocks) == 1:
        (block,) = mask.blocks
        if mask.fetch is not None:  # a rank may fetch more keys than its own queries see
            k, v = k[:, block.keys], v[:, block.keys]
        return backend(q, k, v, block)
    parts = [
        backend(q[:, block.queries], k[:, block.keys], v[:, block.keys], block)
        for block in mask.blocks
    ]
    return torch.cat(parts, dim=1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    mask = block.dense_mask
    if mask is not None:
        mask = mask.to(q.dtype)  # the CPU kernel reads a mask of another dtype wrongly
        if block.repeats_kv:
            k, v = repeat_kv(q, k, v)
    return _torch_sdpa(q, k, v, mask)


def _torch_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns keys and values with as many heads as the queries."""
    groups = q.shape[2] // k.shape[2]
    if groups == 1:
        return k, v
    return k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    """Returns SDPA with cuDNN's kernel preferred: the fastest on Hopper for plain causal masks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    mask = block.dense_mask
    with sdpa_kernel(kernels, set_priority=True):
        return _torch_sdpa(q, k, v, None if mask is None else mask.to(q.dtype))


def _blocks(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    if block.masked_out is None:  # the window covers the whole sequence
        return _sdpa(q, k, v, block)
    assert block.window is not None
    return attend_blocks(q, k, v, block.window, block.masked_out)


def _flex(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    from model.attention.flex import attend_flex

    assert block.block_mask is not None
    return attend_flex(q, k, v, block.block_mask)


def _flash_window(block: QueryBlock) -> tuple[int, int]:
    return (-1, 0) if block.window is None else (block.window - 1, 0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": _flash_window(block)}
    if q.shape[2] != k.shape[2]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11 supports windows, but not grouped queries
            k, v = repeat_kv(q, k, v)
    out = varlen_attn(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), *_lengths(block), **options
    )
    assert isinstance(out, Tensor)
    return out.view(q.shape)


def _lengths(block: QueryBlock) -> tuple[Tensor, Tensor, int, int]:
    """Returns cu_seqlens_q, cu_seqlens_k, max_seqlen_q and max_seqlen_k.

    If this process holds fewer queries than keys of a document, the queries are those of the last
    keys. Both then end at the same token, which is how the kernels align a causal mask.
    """
    assert block.cu_seqlens_q is not None
    assert block.cu_seqlens_k is not None
    return block.cu_seqlens_q, block.cu_seqlens_k, block.max_seqlen_q, block.max_seqlen_k


def _flash(q: Tensor, k: Tensor, v: Tensor, block: QueryBlock) -> Tensor:
    function = _flash_attn_function()
    assert function is not None
    out = function(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        *_lengths(block),
        causal=True,
        window_size=_flash_window(block),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out.view(q.shape)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, QueryBlock], Tensor]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "blocks": _blocks,
    "flex": _flex,
    "varlen": _varlen,
    "fa3": _varlen,
    "fa4": _varlen,
    "flash": _flash,
}


class FlashKernel(NamedTuple):
    """A newer FlashAttention, which torch can use instead of its own kernel.

    name: torch's name of it.
    module: the module that it needs.
    capabilities: major compute capabilities of the GPUs that have it.
    """

    name: str
    module: str
    capabilities: tuple[int, ...]


FLASH_KERNELS = {
    "fa3": FlashKernel("FA3", "flash_attn_interface", (9,)),
    "fa4": FlashKernel("FA4", "flash_attn.cute", (9, 10)),
}
"""Backends that replace the kernel of torch's FlashAttention, in `varlen` and elsewhere."""


def select_flash_kernel(backend: str) -> None:
    """Makes torch's FlashAttention use the kernel of a backend, for the whole process."""
    from torch.nn import attention

    if not hasattr(attention, "restore_flash_attention_impl"):
        return  # this torch has its own kernel only
    kernel = FLASH_KERNELS.get(backend)
    wanted = None if kernel is None else kernel.name
    if wanted == attention.current_flash_attention_impl():
        return
    if wanted is None:
        attention.restore_flash_attention_impl()
    else:
        attention.activate_flash_attention_impl(wanted)


def usable_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns the backends available on this device for this dtype.

    On a CPU, only `sdpa` and `blocks` have a backward pass. `cudnn`, `varlen` and `flash` support
    only 16-bit dtypes.
    """
    if device.type != "cuda":
        return ["sdpa", "blocks"]
    found = ["sdpa", "flex"]
    if dtype in (torch.bfloat16, torch.float16):
        if torch.backends.cudnn.is_available() and not torch.are_deterministic_algorithms_enabled():
            found.append("cudnn")
        if _torch_varlen_takes("window_size"):
            found.append("varlen")
            found += [name for name in FLASH_KERNELS if _has_flash_kernel(name, device)]
        if _flash_attn_function() is not None:
            found.append("flash")
    return found


def check_backend_name(name: str) -> None:
    """Raises InputError if a backend is unknown."""
    one_of("parallel.attention", name, ("auto", *BACKENDS))


def check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError if a backend is unknown or not available on the device."""
    check_backend_name(name)
    if name not in usable_backends(device, dtype):
        raise InputError(
            f"parallel.attention={name}: the installed packages do not support this backend on "
            f"{device.type} in {str(dtype).removeprefix('torch.')}. Use parallel.attention=auto."
        )


def _has_flash_kernel(backend: str, device: torch.device) -> bool:
    """Returns whether torch, the GPU and the installed packages have the kernel of a backend."""
    kernel = FLASH_KERNELS[backend]
    if not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        return False
    if torch.cuda.get_device_capability(device)[0] not in kernel.capabilities:
        return False
    try:
        return importlib.util.find_spec(kernel.module) is not None
    except ImportError:  # its parent package is missing or broken
        return False


@cache
def _flash_attn_function() -> Callable[..., Any] | None:
    """Returns flash_attn_varlen_func of flash-attn 2, or None.

    flash-attn 4 alone makes `flash_attn` a package without this function.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError):  # not installed, or built for another torch
        return None
    function: Callable[..., Any] = flash_attn_varlen_func
    return function


def repeats_kv(backend: str, device: str) -> bool:
    """Returns whether a backend may keep copies of keys and values for each head of the queries."""
    if device != "cuda":
        return False
    return backend == "sdpa" or (
        BACKENDS.get(backend) is _varlen and not _torch_varlen_takes("enable_gqa")
    )


def _torch_varlen_takes(argument: str) -> bool:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return argument in inspect.signature(varlen_attn).parameters
