"""Compares what the device computes with float32 on the CPU: attention, loss, fp8, optimizers.

An error is the norm of the difference over the norm of the reference. bf16 rounds to 1/256, fp8 to
1/16 (forward) and 1/8 (gradients), so a wrong kernel is far outside of the limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.worker import Recorder

LIMITS = {"bf16": 0.015, "fp8": 0.06, "fp8 gradient": 0.1, "muon": 0.1, "adamw": 1e-4}
"""Largest error that passes, by kind."""
SEQ, BATCH, WINDOW = 256, 2, 64
STARTS = (0, 100, 256, 300, 512, 512, 512)
"""Starts of documents, padded like the loader does."""


def attention(recorder: Recorder) -> None:
    """Compares every attention backend, at head dims 80 and 120, with the CPU's masked SDPA."""
    from model.attention.backends import usable_backends

    context: Context = recorder.context
    for name in usable_backends(context.device, torch.bfloat16):
        for head_dim, window, documents in attention_cases(name):
            title = f"{name}, head dim {head_dim}"
            title += f"{', window' if window else ''}{', documents' if documents else ''}"
            recorder.measure(
                title, attention_errors, name, head_dim, window, documents, context.device
            )


def attention_cases(backend: str) -> Iterator[tuple[int, int | None, bool]]:
    """Yields head dim, window and whether there are documents.

    FlexAttention compiles for seconds per case, so it has two that differ in everything.
    """
    if backend == "flex":
        yield from ((80, WINDOW, True), (120, None, False))
        return
    yield from product((80, 120), (None, WINDOW), (False, True))


def attention_errors(
    backend: str, head_dim: int, window: int | None, documents: bool, device: torch.device
) -> dict[str, Any]:
    """Returns the errors of the output and of the gradients of q, k and v."""
    inputs = attention_inputs(head_dim)
    found = attention_results(backend, inputs, window, documents, device, torch.bfloat16)
    expected = attention_reference(head_dim, window, documents)
    names = ("output", "q", "k", "v")
    return judged(*zip(names, ["bf16"] * 4, found, expected, strict=True))


@cache
def attention_inputs(head_dim: int) -> tuple[Tensor, ...]:
    """Returns q, k, v and the gradient of the output, which bf16 represents exactly."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, SEQ, heads, head_dim) for heads in (6, 2, 2, 6)]
    return tuple(torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes)


@cache
def attention_reference(head_dim: int, window: int | None, documents: bool) -> list[Tensor]:
    """Returns the output and the gradients in float32 on the CPU."""
    inputs = attention_inputs(head_dim)
    cpu = torch.device("cpu")
    return attention_results("sdpa", inputs, window, documents, cpu, torch.float32)


def attention_results(
    backend: str,
    inputs: tuple[Tensor, ...],
    window: int | None,
    documents: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Returns the output and the gradients of q, k and v."""
    from model.attention.backends import attend, select_flash_kernel
    from model.attention.mask import attention_mask

    q, k, v = (t.to(device, dtype).requires_grad_() for t in inputs[:3])
    starts = torch.tensor(STARTS, dtype=torch.int32, device=device) if documents else None
    select_flash_kernel(backend)
    mask = attention_mask(backend, BATCH, SEQ, window, starts, device, dtype=dtype)
    out = attend(q, k, v, mask)
    return [out, *torch.autograd.grad(out, (q, k, v), inputs[3].to(out))]


def kernels(recorder: Recorder) -> None:
    """Compares the loss, the fp8 linears and the optimizers."""
    context: Context = recorder.context
    for compiled in (False, True):
        title = "chunked loss, compiled" if compiled else "chunked loss"
        recorder.measure(title, loss_errors, compiled, context)
    for precision in ("fp8", "fp8_rowwise"):
        recorder.measure(f"linear, {precision}", fp8_errors, precision, context.device)
    for name in ("adamw", "muon", "normuon"):
        recorder.measure(f"{name}, three steps", optimizer_errors, name, context.device)
        recorder.measure(f"{name}, skipped step", skipped_step, name, context.device)


def loss_errors(compiled: bool, context: Context) -> dict[str, Any]:
    """Returns the errors of the losses and gradients of the output layer with its cross-entropy."""
    from model.loss import IGNORED, linear_cross_entropy, losses_and_gradient

    tokens, hidden, vocab = (64, 32, 128) if context.tiny else (2048, 256, 32000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((tokens, hidden), generator=generator).bfloat16().float()
    weight = (torch.randn((vocab, hidden), generator=generator) / 8).bfloat16().float()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[::7] = IGNORED

    def results(device: torch.device, dtype: torch.dtype, form: Any) -> list[Tensor]:
        states, head = (t.to(device, dtype).requires_grad_() for t in (x, weight))
        loss, losses = linear_cross_entropy(
            states, head, labels.to(device), compiled=form, chunk_tokens=tokens // 4
        )
        return [losses, *torch.autograd.grad(loss, (states, head))]

    form = torch.compile(losses_and_gradient, fullgraph=True, dynamic=False) if compiled else None
    found = results(context.device, torch.bfloat16, form)
    expected = results(torch.device("cpu"), torch.float32, None)
    names = ("losses", "hidden", "weight")
    return judged(*zip(names, ["bf16"] * 3, found, expected, strict=True))


def fp8_errors(precision: str, device: torch.device) -> dict[str, Any]:
    """Returns the errors of a linear layer in fp8, and of its two gradients."""
    from torch import nn

    from pretrain.parallel.fp8 import apply_fp8

    generator = torch.Generator().manual_seed(0)
    x = torch.randn((256, 512), generator=generator).bfloat16()
    weight = torch.randn((384, 512), generator=generator).bfloat16() / 16
    grad = torch.randn((256, 384), generator=generator).bfloat16()

    def results(layer: nn.Linear, leaf: Tensor, dtype: torch.dtype) -> list[Tensor]:
        out = layer(leaf)
        return [out, *torch.autograd.grad(out, (leaf, layer.weight), grad.to(out.device, dtype))]

    def layer(place: torch.device, dtype: torch.dtype) -> nn.Linear:
        made = nn.Linear(512, 384, bias=False, device=place, dtype=dtype)
        made.weight.data.copy_(weight)
        return made

    cpu = torch.device("cpu")
    expected = results(layer(cpu, torch.float32), x.float().requires_grad_(), torch.float32)
    quantized: Any = nn.ModuleList([layer(device, torch.bfloat16)])
    apply_fp8(SimpleNamespace(layers=quantized), precision, device)  # type: ignore[arg-type]
    found = results(quantized[0], x.to(device).requires_grad_(), torch.bfloat16)
    names = ("output", "hidden", "weight")
    kinds = ("fp8", "fp8 gradient", "fp8 gradient")
    return judged(*zip(names, kinds, found, expected, strict=True))


def optimizer_errors(name: str, device: torch.device) -> dict[str, Any]:
    """Returns the error of the weights' change after three steps."""
    found, expected = (updates(name, place, 3) for place in (device, torch.device("cpu")))
    kinds = ("adamw" if name == "adamw" else "muon", "adamw")
    return judged(*zip(("matrices", "others"), kinds, found, expected, strict=True))


def updates(name: str, device: torch.device, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the change of the block's matrices, and of all other weights, as flat tensors."""
    from pretrain.optim import is_block_matrix

    model, optimizer = optimized(name, device)
    before = {key: value.detach().cpu().clone() for key, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        give_gradients(model, generator)
        optimizer.step()
    changes = {key: value.detach().cpu() - before[key] for key, value in model.named_parameters()}
    matrices = [v.flatten() for k, v in changes.items() if is_block_matrix(k, v.ndim)]
    others = [v.flatten() for k, v in changes.items() if not is_block_matrix(k, v.ndim)]
    return torch.cat(matrices), torch.cat(others)


def skipped_step(name: str, device: torch.device) -> dict[str, Any]:
    """Returns the number of values that change in a step with `found_inf`, which must be 0."""
    model, optimizer = optimized(name, device)
    generator = torch.Generator().manual_seed(0)
    give_gradients(model, generator)
    optimizer.step()
    before = [value.clone() for value in state_of(model, optimizer)]
    give_gradients(model, generator)
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.step()
    after = state_of(model, optimizer)
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    return {"changed_values": changed, "ok": changed == 0}


def state_of(model: Any, optimizer: Any) -> list[Tensor]:
    """Returns the weights and their states, without the numbers of steps."""
    states = [
        value
        for parameter in model.parameters()
        for key, value in optimizer.state[parameter].items()
        if key != "step" and hasattr(value, "shape")
    ]
    return [*model.parameters(), *states]


def optimized(name: str, device: torch.device) -> tuple[Any, Any]:
    """Returns a small decoder and its optimizer."""
    from model.network import Decoder
    from pretrain.config import OptimConfig
    from pretrain.optim import build_optimizer
    from tests.model.shapes import initialize, tiny

    config = tiny(hidden_size=128, intermediate_size=256, num_layers=2)
    model = Decoder(config)
    initialize(model, config, 0)
    model.to(device)
    return model, build_optimizer(model, OptimConfig(name=name, learning_rate=0.01))


def give_gradients(model: Any, generator: torch.Generator) -> None:
    """Gives every parameter a random gradient, the same on every device."""
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def judged(*compared: tuple[str, str, Tensor, Tensor]) -> dict[str, Any]:
    """Returns the errors by name, and as `ok` whether each is within the limit of its kind.

    compared: (name, key of LIMITS, found, expected) of each tensor.
    """
    errors, is_right = {}, True
    for name, kind, found, expected in compared:
        errors[f"{name}_error"] = error(found, expected)
        is_right &= errors[f"{name}_error"] <= LIMITS[kind]  # NaN is not within any limit
    return {"ok": is_right, **errors}


def error(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of the reference."""
    difference = found.detach().cpu().float() - expected.detach().float()
    return float(difference.norm() / expected.detach().float().norm())
