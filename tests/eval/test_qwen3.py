"""A Qwen3 model with mixed windows, from training to a chat model and its scores."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from data_pipeline.sampling.batches import IGNORED, held_out_batches
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.results import load_results
from tests.runs import arguments, records

pytestmark = pytest.mark.slow
LAYER_TYPES = ["sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def trained(command, named_corpus, tmp_path_factory):
    """A run of 20 steps with QK-norm and one windowed layer of two, and its export."""
    folder = tmp_path_factory.mktemp("qwen3")
    qwen3 = {"architecture": "qwen3", "qk_norm": "true", "window_pattern": "LG"}
    changes = {f"model__{key}": value for key, value in qwen3.items()}
    done = command(*arguments(named_corpus.folder, folder / "run", **changes))
    assert done.returncode == 0, done.stderr
    done = command(
        *("pretrain", "export", f"run={folder / 'run'}", f"out={folder / 'base'}"),
        "dtype=float32",
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_loss_in_stock_transformers_equals_validation(trained, named_corpus):
    model = AutoModelForCausalLM.from_pretrained(trained / "base")
    assert type(model) is Qwen3ForCausalLM
    assert model.config.layer_types == LAYER_TYPES
    for source, expected in records(trained / "run", "validation")[-1]["sources"].items():
        total, targets = 0.0, 0
        for batch in held_out_batches(named_corpus, source, 128, 4, 2048):
            tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
            for start, end in itertools.pairwise(sorted(set(batch.cu_seqlens.tolist()))):
                with torch.no_grad():
                    logits = model(tokens[None, start:end]).logits[0]
                total += F.cross_entropy(logits, labels[start:end], reduction="sum").item()
                targets += int((labels[start:end] != IGNORED).sum())
        assert targets == expected["tokens"]
        assert total / targets == pytest.approx(expected["loss"], rel=1e-5)


def test_it_is_tuned_and_scored(trained, command, tasks):
    pairs = trained / "pairs.jsonl"
    rows = [{"prompt": f"Say {word}.", "completion": f"{word}!"} for word in "abcdefghij"]
    pairs.write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = command(
        *("finetune", "sft", f"model={trained / 'base'}", f"data={pairs}", "epochs=4"),
        *(f"out={trained / 'chat'}", "device=cpu", "precision=fp32", "learning_rate=1e-2"),
        "log_every=1",
    )
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in records(trained / "chat")]
    assert losses[-1] < losses[0] - 0.5
    chat = AutoModelForCausalLM.from_pretrained(trained / "chat")
    assert type(chat) is Qwen3ForCausalLM
    assert chat.config.layer_types == LAYER_TYPES

    out = trained / "results.json"
    models = {name: str(trained / name) for name in ("base", "chat")}
    harness.lm_eval(
        LmEvalConfig(models=models, task_folder=str(tasks), out=str(out), dtype="float32")
    )
    results = load_results(out)["models"]
    bits = {
        name: results[name]["tasks"]["bytes_prose_perplexity"]["metrics"]["bits_per_byte"]["value"]
        for name in models
    }
    validated = records(trained / "run", "validation")[-1]["sources"]["prose"]["bits_per_byte"]
    assert bits["base"] == pytest.approx(validated, rel=0.3)  # other documents of the same source
    assert bits["chat"] > bits["base"]  # tuned on other text
