"""With documents=joined, a stage trains and validates like transformers on whole sequences."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from conf.chat import ChatTemplate
from conf.errors import InputError
from data_pipeline.sampling.batches import BatchReader, held_out_batches
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from model.config import ModelConfig
from model.flops import mean_keys
from pretrain.export import ExportConfig, export
from pretrain.loader import Loader
from pretrain.resume_checks import check_same_network
from tests.runs import arguments, records

CPU = torch.device("cpu")


def step_data(corpus, documents, windows=(None, 16)):
    stages = {"a": StageConfig(64, 81920, documents=documents)}
    plan = StagePlan(RecipeConfig("r", 4096, stages), corpus.source_tokens("train"))
    order = SampleOrder(corpus.source_tokens("train"), plan.stages, 0)
    # Three ranks: the last micro-batch has blank samples.
    return order, Loader(BatchReader(corpus, order), plan, 2, 3, 512, windows, CPU).get(3)


def test_only_the_boundaries_change(corpus):
    order, separate = step_data(corpus, "separate")
    order_joined, joined = step_data(corpus, "joined")
    assert order_joined.fingerprint == order.fingerprint
    samples = 0
    for ours, theirs in zip(joined.micro_batches, separate.micro_batches, strict=True):
        for name in ("tokens", "labels", "sources", "samples", "documents"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert np.array_equal(a, b), name
        rows = len(ours.tokens)
        assert ours.cu_seqlens.tolist() == list(range(0, rows * 64 + 1, 64))
        assert len(theirs.cu_seqlens) > rows + 1
        samples += len(ours.samples)
    # Digest, targets and documents; the first count, attended keys, follows from whole sequences.
    assert torch.equal(joined.counts[1:], separate.counts[1:])
    assert joined.counts[0] == samples * 64 * (mean_keys(64, None) + mean_keys(64, 16))
    assert separate.counts[0] < joined.counts[0]


def test_an_unknown_value_is_refused():
    with pytest.raises(InputError, match=r"recipe\.stages\.a\.documents=merged: .*separate"):
        RecipeConfig("r", 4096, {"a": StageConfig(64, 81920, documents="merged")})


def test_validation_and_export_follow_the_stage(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    made = arguments(
        corpus.folder,
        run_dir,
        stop_after=2,
        validation__every_steps=2,
        validation__tokens=1024,
        recipe__stages__short__documents="joined",
    )
    done = command(*made)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "model"
    export(ExportConfig(str(run_dir), "latest", str(out), "float32", ChatTemplate("t", "")))
    assert "across documents in stage short" in (out / "README.md").read_text()
    metadata = json.loads((run_dir / "checkpoints/step_2/manifest.json").read_text())
    assert list(metadata["attention"]) == ["64 joined", "128"]
    # The stage has to continue as it began; a later one may change.
    plan = StagePlan(
        RecipeConfig("r", 2048, {"short": StageConfig(64, 20480)}), corpus.source_tokens("train")
    )
    with pytest.raises(
        InputError, match=r"short\.documents=separate: there was trained with joined"
    ):
        check_same_network(metadata, ModelConfig(**metadata["model"]), plan, "there")

    last = records(run_dir, "validation")[-1]
    model = AutoModelForCausalLM.from_pretrained(out)
    for source, found in last["sources"].items():
        total, targets = 0.0, 0
        for batch in held_out_batches(corpus, source, 64, 4, 1024):
            with torch.no_grad():
                logits = model(batch.tokens).logits
            total += float(F.cross_entropy(logits.mT, batch.labels, reduction="sum"))
            targets += int((batch.labels >= 0).sum())
        assert found["tokens"] == targets
        assert found["loss"] == pytest.approx(total / targets, rel=1e-4)
