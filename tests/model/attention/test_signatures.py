"""Our calls of packages fit the signatures of these packages, also of those that need a GPU.

Signatures of packages that are not installed here are written down below; those that are installed
are compared with what is written.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys

import pytest
import torch
from torch import nn

from model.attention import backends
from model.attention.backends import BACKENDS, FLASH_KERNELS, attend
from model.attention.mask import VARLEN_BACKENDS, QueryRange, attention_mask
from pretrain.parallel.fp8 import SCALING

CPU = torch.device("cpu")
STARTS = torch.tensor([0, 100, 256, 300, 512, 512], dtype=torch.int32)

FLASH_ATTN = {
    "2": (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
        "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
        "deterministic=False, return_attn_probs=False, block_table=None"
    ),
    "3": (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, "
        "seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, "
        "k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, "
        "num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False"
    ),
}
"""flash_attn_varlen_func by version of the package."""
VARLEN_2_11 = (
    "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, "
    "window_size=(-1, -1)"
)
VARLEN_2_13 = f"{VARLEN_2_11}, enable_gqa=False, seqused_k=None, block_table=None, num_splits=None"
"""torch.nn.attention.varlen.varlen_attn from that version of torch on."""


def recorder(signature, calls):
    """Returns a function with a signature, which keeps its arguments and returns the queries."""
    scope = {"calls": calls}
    source = f"def call({signature}):\n    calls.append(dict(locals()))\n"
    first = signature.split(",")[0]
    exec(f"{source}    return {first}.clone()", scope)
    return scope["call"]


def attend_with(backend, window=64, part=None):
    """Runs a backend on two sequences, or on a part of the positions."""
    q, k, v = (torch.zeros(2, 256, heads, 64) for heads in (6, 2, 2))
    mask = attention_mask(
        backend, 2, 256, window, STARTS, CPU, None if part is None else [part], max_seqlen=212
    )
    start, end, first = part or (0, 256, 0)
    return attend(q[:, start:end], k[:, first:end], v[:, first:end], mask)


def check_lengths(call, names, queries, keys):
    """Checks shapes and types that the kernels require."""
    starts_q, starts_k, longest_q, longest_k = (call[name] for name in names)
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert starts_q.ndim == 1
    assert starts_q.shape == starts_k.shape
    assert (int(starts_q[-1]), int(starts_k[-1])) == (queries, keys)
    assert (type(longest_q), type(longest_k)) == (int, int)
    assert longest_q >= int(starts_q.diff().max())
    assert longest_k >= int(starts_k.diff().max())


PARTS = [(None, 512, 512), (QueryRange(128, 192, 65), 128, 254)]


@pytest.mark.parametrize(("part", "queries", "keys"), PARTS)
@pytest.mark.parametrize("version", FLASH_ATTN)
def test_flash_attn(version, part, queries, keys, monkeypatch):
    calls: list[dict] = []
    function = recorder(FLASH_ATTN[version], calls)
    monkeypatch.setattr(backends, "_flash_attn_function", lambda: function)
    attend_with("flash", 64, part)
    (call,) = calls
    assert call["q"].shape == (queries, 6, 64)
    assert call["k"].shape == call["v"].shape == (keys, 2, 64)
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    check_lengths(call, names, queries, keys)
    # A window of W keys includes the query; the kernel counts the keys to its left.
    assert call["window_size"] == (63, 0)
    assert call["causal"] is True
    assert call["deterministic"] is False


def test_flash_attn_is_told_to_be_deterministic(monkeypatch):
    calls: list[dict] = []
    function = recorder(FLASH_ATTN["2"], calls)
    monkeypatch.setattr(backends, "_flash_attn_function", lambda: function)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    attend_with("flash")
    assert calls[0]["deterministic"] is True


@pytest.mark.parametrize(("part", "queries", "keys"), PARTS)
@pytest.mark.parametrize("backend", ["varlen", "fa3", "fa4"])
@pytest.mark.parametrize("signature", [VARLEN_2_11, VARLEN_2_13])
def test_torch_varlen(signature, backend, part, queries, keys, monkeypatch):
    from torch.nn.attention import varlen

    calls: list[dict] = []
    monkeypatch.setattr(varlen, "varlen_attn", recorder(signature, calls))
    attend_with(backend, None, part)
    (call,) = calls
    grouped = signature == VARLEN_2_13
    assert call["query"].shape == (queries, 6, 64)
    assert call["key"].shape == (keys, 2 if grouped else 6, 64)
    assert call.get("enable_gqa", False) is grouped
    check_lengths(call, ("cu_seq_q", "cu_seq_k", "max_q", "max_k"), queries, keys)
    assert call["window_size"] == (-1, 0)  # which torch takes for causal


def test_copies_of_keys_are_planned(monkeypatch):
    from torch.nn.attention import varlen

    for signature, copies in ((VARLEN_2_11, True), (VARLEN_2_13, False)):
        monkeypatch.setattr(varlen, "varlen_attn", recorder(signature, []))
        assert {backends.repeats_kv(name, "cuda") for name in ("varlen", "fa3", "fa4")} == {copies}
    assert backends.repeats_kv("sdpa", "cuda")
    assert not backends.repeats_kv("sdpa", "cpu")
    assert not any(backends.repeats_kv(name, "cuda") for name in ("cudnn", "flex", "flash"))


def test_the_installed_varlen_is_one_of_these():
    from torch.nn.attention.varlen import varlen_attn

    found = [*inspect.signature(varlen_attn).parameters]
    known = [
        [*inspect.signature(recorder(one, [])).parameters] for one in (VARLEN_2_11, VARLEN_2_13)
    ]
    assert any(found[: len(one)] == one for one in known)


def test_an_installed_flash_attn_is_one_of_these():
    function = backends._flash_attn_function()
    if function is None:
        pytest.skip("flash-attn is not installed here")
    known = [[*inspect.signature(recorder(one, [])).parameters] for one in FLASH_ATTN.values()]
    assert [*inspect.signature(function).parameters] in known


def test_sdpa_and_its_kernels():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    assert list(inspect.signature(sdpa_kernel).parameters) == ["backends", "set_priority"]
    for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        assert hasattr(SDPBackend, name)
    assert "enable_gqa" in str(torch._C._nn.scaled_dot_product_attention.__doc__)


@pytest.mark.parametrize("backend", FLASH_KERNELS)
def test_torch_activates_newer_kernels_from_the_modules_that_we_look_for(backend):
    from torch.nn import attention

    kernel = FLASH_KERNELS[backend]
    assert backend in BACKENDS
    assert backend in VARLEN_BACKENDS
    assert kernel.name in attention.list_flash_attention_impls()
    module = importlib.import_module(f"torch.nn.attention._{backend}")
    register = inspect.signature(getattr(module, f"register_flash_attention_{backend}"))
    assert register.parameters["module_path"].default.startswith(kernel.module)
    for name in ("activate", "restore"):
        assert hasattr(attention, f"{name}_flash_attention_impl")


def test_selecting_a_kernel_activates_it_once_and_restores(monkeypatch):
    from torch.nn import attention

    calls: list[str] = []
    current: list[str | None] = [None]
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: current[0])

    def activate(name):
        calls.append(name)
        current[0] = name

    def restore():
        calls.append("restore")
        current[0] = None

    monkeypatch.setattr(attention, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(attention, "restore_flash_attention_impl", restore)
    for backend in ("varlen", "fa3", "fa3", "fa4", "sdpa", "flash"):
        backends.select_flash_kernel(backend)
    assert calls == ["FA3", "FA4", "restore"]


def test_flash_attn_4_alone_is_not_flash_attn_2(monkeypatch, tmp_path):
    """flash-attn 4 makes a namespace `flash_attn` with `cute` inside."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("flash_attn")]:
        monkeypatch.delitem(sys.modules, name)
    backends._flash_attn_function.cache_clear()
    try:
        assert importlib.util.find_spec("flash_attn") is not None
        assert backends._flash_attn_function() is None
    finally:
        backends._flash_attn_function.cache_clear()


def test_torchao():
    float8 = pytest.importorskip("torchao.float8")
    config = float8.Float8LinearConfig
    for recipe in SCALING.values():
        made = config.from_recipe_name(recipe)
        assert dataclasses.replace(made, emulate=True).emulate is True
    call = inspect.signature(float8.convert_to_float8_training)
    call.bind(nn.Linear(16, 16), config=made)
