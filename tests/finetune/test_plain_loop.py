"""Supervised tuning against a plain loop of transformers and torch: the same curve."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.batch_order import shuffled_indices
from finetune.sft import sft

pytestmark = pytest.mark.slow

SEED, BATCH, EPOCHS, RATE, WARMUP, DECAY, CLIP = 3, 8, 3, 1e-2, 0.2, 0.1, 1.0


def plain_losses(base: Path, data: Path) -> tuple[list[float], torch.nn.Module]:
    """Rendering, mask, batches, schedule, clipping and steps, written out."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = []
    for line in data.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"<|prompt|>{row['prompt']}</s><|answer|>")["input_ids"]
        answer = tokenizer(f"{row['completion']}</s>")["input_ids"]
        examples.append((prompt + answer, len(prompt)))
    lengths = [len(ids) for ids, _ in examples]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    )
    steps = EPOCHS * math.ceil(len(examples) / BATCH)
    warmup = math.ceil(WARMUP * steps)
    losses: list[float] = []
    for epoch in range(EPOCHS):
        indices = shuffled_indices(lengths, BATCH, SEED, epoch, by_length=True)
        for start in range(0, len(indices), BATCH):
            batch = [examples[i] for i in indices[start : start + BATCH]]
            total, count = torch.zeros(()), 0
            for ids, begin in batch:  # one by one: no padding
                logits = model(torch.tensor([ids])).logits[0, begin - 1 : -1]
                answer = torch.tensor(ids[begin:])
                total = total + cross_entropy(logits, answer, reduction="sum")
                count += len(answer)
            loss = total / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            step = len(losses)
            past = (step - warmup) / max(1, steps - warmup)
            scale = step / warmup if step < warmup else (1 + math.cos(math.pi * past)) / 2
            for group in optimizer.param_groups:
                group["lr"] = RATE * scale
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("micro_batch_size", [BATCH, 2])
def test_same_curve_as_a_plain_loop(
    settings, base: Path, pairs: Path, tmp_path: Path, micro_batch_size: int
) -> None:
    """Every loss to 1e-5 and what comes out, in fp32; 15 steps over three epochs."""
    config = settings(
        seed=SEED,
        batch_size=BATCH,
        micro_batch_size=micro_batch_size,
        epochs=EPOCHS,
        learning_rate=RATE,
        warmup=WARMUP,
        weight_decay=DECAY,
        clip_norm=CLIP,
    )
    sft(config)
    records = map(json.loads, (tmp_path / "chat" / "metrics.jsonl").read_text().splitlines())
    ours = [record["loss"] for record in records if record["kind"] == "train"]
    plain, model = plain_losses(base, pairs)
    assert len(ours) == 15
    assert ours[-1] < ours[0] - 1
    assert ours == pytest.approx(plain, rel=1e-5)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "chat").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(made[name].float(), tensor, atol=2e-3, rtol=1e-2)  # bf16
