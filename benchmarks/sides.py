"""Training steps of one decoder by Headwater and by its peers, for comparisons.

All have the same shape, batches, AdamW and clipping, in float32 or in bf16 with float32 master
weights. On a CPU they start with the same weights, so that equal losses show that they did the same
work.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from model.config import ModelConfig

RATE, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
DOCUMENT_TOKENS = 1000
"""Mean length of packed documents, like that of web pages."""

Step = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps tokens and labels, each (batch, seq), to the mean loss.

The loss is 0-d and on the device, after the optimizer's step.
"""


@dataclass(frozen=True)
class Work:
    """The work that all sides do.

    Attributes:
        batch: Sequences per step and process.
        precision: `bf16` or `fp32`, and for Headwater also `fp8` and `fp8_rowwise`.
        processes: Number of processes that share the batch.
        documents: Whether the sequences hold several documents, packed as the trainer packs them;
            else each is one document. Only Headwater separates documents.
    """

    model: ModelConfig
    batch: int
    seq_len: int
    device: str = "cpu"
    precision: str = "bf16"
    compiled: bool = False
    attention: str = "auto"
    activation_checkpointing: str = "none"
    processes: int = 1
    documents: bool = False


def ours(work: Work) -> Step:
    """Returns a training step like `pretrain.trainer` takes it, with FSDP2 over `processes`."""
    import torch
    import torch.distributed as dist

    from model.attention.backends import select_flash_kernel
    from model.network import build_meta
    from pretrain.config import OptimConfig, ParallelConfig
    from pretrain.hooks.allocator import keep_freed_memory
    from pretrain.optim import build_optimizer
    from pretrain.optim.clip import scale_and_clip
    from pretrain.parallel import materialize, parallelize
    from pretrain.parallel.mesh import make_layout
    from pretrain.processes import start

    device = start(work.device).device
    layout = make_layout((1, work.processes, 1, 1), device)
    attention = attention_for(work, device)
    select_flash_kernel(attention)
    model = build_meta(work.model, attention)
    parallel = ParallelConfig(
        compile=work.compiled, activation_checkpointing=work.activation_checkpointing
    )
    parallelize(model, layout, parallel, work.precision)
    materialize(model, device, lambda name, shape: initial_value(name, shape, work))
    optimizer = build_optimizer(
        model,
        OptimConfig(
            learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY
        ),
    )
    if device.type == "cpu":
        keep_freed_memory(True)  # as the trainer does
    tokens_of_rank = work.batch * work.seq_len
    cu_seqlens, max_seqlen = packed_documents(work, device)
    # FSDP averages over its processes.
    scale = torch.tensor(1.0 / tokens_of_rank, device=device)

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        loss, _ = model(tokens, labels, cu_seqlens, per_sample=True, max_seqlen=max_seqlen)
        (loss / tokens_of_rank).backward()
        scale_and_clip(model.parameters(), torch.ones_like(scale), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.detach() * scale
        if work.processes > 1:
            dist.all_reduce(mean)
            mean /= work.processes
        return mean

    return step


def attention_for(work: Work, device: torch.device) -> str:
    """Returns the attention backend that the trainer would select."""
    from functools import partial

    from model.attention.backends import usable_backends
    from pretrain.attention_choice import AttentionWork, fastest
    from pretrain.hardware import compute_dtype

    if work.attention != "auto":
        return work.attention
    if device.type == "cpu":
        window = work.model.sliding_window
        return "blocks" if window and window < work.seq_len else "sdpa"
    dtype = compute_dtype(work.precision)
    cu_seqlens, max_seqlen = packed_documents(work, device)
    timing = fastest(
        usable_backends(device, dtype),
        partial(
            AttentionWork,
            model=work.model,
            shape=(work.batch, work.seq_len),
            tp=1,
            cu_seqlens=cu_seqlens,
            device=device,
            dtype=dtype,
            max_seqlen=max_seqlen,
        ),
    )
    return timing.backend


def packed_documents(work: Work, device: torch.device) -> tuple[Tensor | None, int | None]:
    """Returns `cu_seqlens` on the device and `max_seqlen`; None for plain causal attention.

    Packed documents have random lengths with a mean of DOCUMENT_TOKENS. Without them each sequence
    is one document, for which a GPU has plain causal kernels, as the peers use.
    """
    import torch

    from data_pipeline.sampling.padding import pad_starts

    tokens, mean = work.batch * work.seq_len, work.seq_len
    starts = torch.arange(0, tokens, work.seq_len)
    if work.documents:
        mean = DOCUMENT_TOKENS
        generator = torch.Generator().manual_seed(0)
        inside = torch.randint(1, tokens, (tokens // mean,), generator=generator)
        starts = torch.cat((starts, inside)).unique()
    elif device.type != "cpu":
        return None, None
    cu_seqlens, max_seqlen = pad_starts(starts.numpy(), work.batch, work.seq_len, mean)
    return torch.from_numpy(cu_seqlens).to(device), max_seqlen


def initial_value(name: str, shape: torch.Size, work: Work) -> Tensor:
    """Returns a parameter's initial value: on a CPU the trainer's, on a GPU any of that size."""
    import torch

    from model import init

    if work.device == "cpu":
        return init.initial_value(name, shape, work.model, 0)
    if len(shape) == 1:
        return torch.ones(shape, device=work.device)
    return torch.randn(shape, device=work.device) * work.model.initializer_range


def initial_values(work: Work) -> dict[str, Tensor]:
    """Returns the weights by Headwater's names."""
    from model.network import build_meta

    shapes = {name: value.shape for name, value in build_meta(work.model).named_parameters()}
    return {name: initial_value(name, shape, work) for name, shape in shapes.items()}


def transformers(work: Work) -> Step:
    """Returns a step of Mistral of `transformers` with its own loss."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from model.families import family_named
    from model.families.folder import hf_config

    fields = hf_config(work.model, {}, "float32")
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(**fields | {"attn_implementation": "sdpa"}))
    rope = model.model.rotary_emb
    model.model.rotary_emb = type(rope)(model.config)  # its buffers have values, not only shapes
    hf_name = family_named(work.model.architecture).hf_name
    values = {hf_name(name): value for name, value in initial_values(work).items()}
    model.load_state_dict(values, assign=True)
    if work.activation_checkpointing != "none":
        model.gradient_checkpointing_enable()
    return plain_loop(
        model,
        lambda called, tokens, labels: (
            called(input_ids=tokens, labels=labels, shift_labels=labels, use_cache=False).loss
        ),
        work,
    )


def litgpt(work: Work) -> Step:
    """Returns a step of the model of `litgpt`."""
    import torch
    from litgpt import GPT, Config

    own = work.model
    model = GPT(
        Config(
            block_size=work.seq_len,
            n_layer=own.num_layers,
            n_embd=own.hidden_size,
            n_head=own.num_heads,
            n_query_groups=own.num_kv_heads,
            head_size=own.head_dim,
            vocab_size=own.vocab_size,
            padded_vocab_size=own.vocab_size,
            intermediate_size=own.intermediate_size,
            sliding_window_size=own.sliding_window,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            norm_eps=own.rms_norm_eps,
        )
    )
    values = initial_values(work)
    renamed = {
        "lm_head.weight": values["lm_head.weight"],
        "transformer.wte.weight": values["embed_tokens.weight"],
        "transformer.ln_f.weight": values["norm.weight"],
    }
    names = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for layer in range(own.num_layers):
        to, by = f"transformer.h.{layer}", f"layers.{layer}"
        for name, our_name in names.items():
            renamed[f"{to}.{name}.weight"] = values[f"{by}.{our_name}.weight"]
        parts = [values[f"{by}.self_attn.{name}_proj.weight"] for name in "qkv"]
        renamed[f"{to}.attn.qkv.weight"] = torch.cat(parts)
    model.load_state_dict(renamed)
    return plain_loop(model, logits_loss, work)


def nanogpt(work: Work) -> Step:
    """Returns a step of a plain model in one class and a plain loop, in the style of nanoGPT."""
    from benchmarks.plain_model import Plain, plain_weights
    from pretrain.hardware import compute_dtype

    model = Plain(work.model, work.seq_len, compute_dtype(work.precision))
    model.load_state_dict(plain_weights(initial_values(work), work.model), strict=False)
    return plain_loop(model, logits_loss, work)


def logits_loss(called: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Computes the mean cross-entropy of materialized logits in float32."""
    import torch.nn.functional as F

    return F.cross_entropy(called(tokens).float().flatten(0, 1), labels.flatten())


def plain_loop(
    model: nn.Module, loss_of: Callable[[Any, Tensor, Tensor], Tensor], work: Work
) -> Step:
    """Adds autocast for bf16, clipping and fused AdamW; compiles all of it if requested."""
    import torch

    model.to(work.device)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": w} for w in (DECAY, 0.0)]
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or any(part in name for part in ("embed", "wte"))
        groups[spared]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
    model.train()
    called = torch.compile(model) if work.compiled else model

    def step(tokens: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(work.device, torch.bfloat16, enabled=work.precision != "fp32"):
            loss = loss_of(called, tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


SIDES: dict[str, Callable[[Work], Step]] = {
    "ours": ours,
    "transformers": transformers,
    "nanogpt": nanogpt,
    "litgpt": litgpt,
}


PEERS = Path(__file__).parents[1] / ".venv-peers/bin/python"
"""Python of `make peers`, for peers that conflict with the pinned packages."""


def missing(side: str) -> str | None:
    """Returns the package that a side needs and that is not installed, or None."""
    needs = {"transformers": "transformers", "litgpt": "litgpt"}.get(side)
    return needs if needs and importlib.util.find_spec(needs) is None else None


def interpreter(side: str) -> str | None:
    """Returns the Python that has the package of a side, or None.

    That is this one or the one of the peers' environment.
    """
    package = missing(side)
    if package is None:
        return sys.executable
    if not PEERS.exists():
        return None
    found = subprocess.run([PEERS, "-c", f"import {package}"], capture_output=True, check=False)
    return str(PEERS) if found.returncode == 0 else None
