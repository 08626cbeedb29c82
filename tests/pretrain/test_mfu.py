"""I10: the MFU of metrics.jsonl follows from tokens, keys and seconds."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pretrain import trainer as loop
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks.run_files import RunFiles
from pretrain.processes import start
from pretrain.setup import prepare
from tests.runs import records, settings

PEAK = 3e12


@pytest.mark.slow
def test_mfu_is_the_exact_formula(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: (PEAK, "of the test"))
    config = settings(corpus.folder, tmp_path / "run", stop_after=12)
    processes = start("cpu")
    try:
        trainer = loop.Trainer(
            config, processes, prepare(config, processes), BadSteps(config.health, 1)
        )
        trainer.hooks = [RunFiles(tmp_path / "run")]
        trainer.train()
        steps = [trainer.loader._read(step).micro_batches for step in range(12)]
    finally:
        dist.destroy_process_group()
    model = config.model
    assert model.sliding_window
    # Two linears of hidden x hidden, two of hidden x kv, three of hidden x intermediate, the head.
    products = 64 * (2 * 64 + 2 * 32 + 3 * 96) * 2 + 64 * 260
    found = records(tmp_path / "run")
    assert [record["seq_len"] for record in found] == [64] * 10 + [128] * 2
    for record, batches in zip(found, steps, strict=True):
        keys = tokens = 0
        for batch in batches:
            count = batch.tokens.numel()
            position = torch.arange(count)
            document = torch.searchsorted(batch.cu_seqlens, position.int(), right=True)
            distance = position[:, None] - position[None, :]
            seen = (distance >= 0) & (distance < model.sliding_window)
            keys += int((seen & (document[:, None] == document)).sum())
            tokens += count
        assert tokens == 2048
        flops = 6 * products * tokens + 12 * model.num_layers * model.query_size * keys
        assert record["mfu"] == pytest.approx(flops / record["step_seconds"] / PEAK, rel=1e-6)
        assert record["tokens_per_second"] == pytest.approx(tokens / record["step_seconds"])


@pytest.mark.slow
def test_steps_in_fp8_have_a_share_of_the_fp8_peak_too(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: (PEAK, "of the test"))
    monkeypatch.setattr(loop, "fp8_peak", lambda device: 2 * PEAK)
    fp8 = {"precision": "bf16", "recipe__stages__long__precision": "fp8", "stop_after": 12}
    config = settings(corpus.folder, tmp_path / "run", **fp8)
    processes = start("cpu")
    try:
        trainer = loop.Trainer(
            config, processes, prepare(config, processes), BadSteps(config.health, 1)
        )
        trainer.hooks = [RunFiles(tmp_path / "run")]
        trainer.train()
    finally:
        dist.destroy_process_group()
    found = records(tmp_path / "run")
    assert ["mfu_fp8" in record for record in found] == [False] * 10 + [True] * 2
    for record in found[10:]:
        assert record["mfu_fp8"] == pytest.approx(record["mfu"] / 2)
