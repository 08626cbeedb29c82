"""A loop in the style of nanoGPT: GPT-2's architecture, and the settings of its small runs.

    python -m benchmarks.equal_time.nanogpt --stream tokens.npy --steps 100 ...

Tied embeddings, learned positions, LayerNorm and GELU, in GPT-2's class of `transformers`, with as
many layers as come closest to the parameters of the others. AdamW at 1e-3 down to 1e-4 along a
cosine, betas 0.9 and 0.99, weight decay 0.1 for matrices, clipping at 1, no dropout, not compiled:
the settings that nanoGPT documents for small models and for CPUs.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.equal_time.shape import shape
from benchmarks.equal_time.work import BATCH, SEQ, WARM_UP, Answer, Work, parsed

RATE, LOWEST, BETAS, DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0
WIDTH, HEADS, LAYERS = 320, 5, 7


def main() -> None:
    """Trains and saves."""
    work = parsed()
    torch.manual_seed(work.seed)
    config = GPT2Config(
        vocab_size=shape().vocab_size,
        n_positions=SEQ,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    seconds = train(model, work)
    model.save_pretrained(work.out)
    Answer.of(model.num_parameters(), seconds).write(work.out)


def train(model: GPT2LMHeadModel, work: Work) -> list[float]:
    """Takes all steps, and returns their seconds."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=BETAS,
        fused=True,
    )
    rows = torch.from_numpy(work.sequences()).view(work.steps, BATCH, SEQ + 1)
    seconds = []
    for step in range(work.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, work.steps)
        batch = rows[step]
        with torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16"):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return seconds


def rate_at(step: int, steps: int) -> float:
    """Returns the learning rate: linear warm-up, then a cosine to LOWEST."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return RATE * (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(1, steps - warm_up)
    return LOWEST + 0.5 * (1 + math.cos(math.pi * done)) * (RATE - LOWEST)


if __name__ == "__main__":
    main()
