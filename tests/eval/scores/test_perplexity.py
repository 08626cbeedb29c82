"""The same held-out loss by the trainer's evaluator, by stock transformers, and by hand."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, held_out_batches
from eval.inloop.evaluator import evaluate
from eval.scores.perplexity import PerplexityConfig, padded, perplexity, segments
from model.families import family_named
from model.families.folder import HFWeights, read_config
from model.network import Decoder
from tests.corpora import byte_tokenizer

SEQ_LEN, TOKENS = 96, 2000


@pytest.fixture(scope="module")
def decoder(model) -> Decoder:
    config = read_config(model)
    made = Decoder(config)
    weights = HFWeights(model, family_named(config.architecture))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(weights.read(name))
    return made


@pytest.fixture(scope="module")
def scores(model, named_corpus, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("scores") / "perplexity.json"
    data = str(named_corpus.folder)
    perplexity(
        PerplexityConfig(str(model), data, SEQ_LEN, TOKENS, 300, dtype="float32", out=str(out))
    )
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["code", "prose"])
def test_trainer_and_export_have_the_same_loss(decoder, named_corpus, scores, source):
    sizes = torch.from_numpy(named_corpus.token_bytes().astype("int64"))
    batches = held_out_batches(named_corpus, source, SEQ_LEN, 4, TOKENS)
    ours = evaluate(decoder, batches, sizes, torch.device("cpu"))
    theirs = scores["sources"][source]
    assert theirs["tokens"] == ours.tokens
    assert theirs["loss"] == pytest.approx(ours.loss, rel=1e-5)
    assert theirs["bits_per_byte"] == pytest.approx(ours.bits_per_byte, rel=1e-5)


def test_a_run_can_be_given_as_the_model(model, named_corpus, scores, tmp_path):
    step = tmp_path / "run" / "export" / "step_3"  # as find_model leaves it
    shutil.copytree(model, step)
    checkpoint, out = tmp_path / "run" / "checkpoints" / "step_3", tmp_path / "scores.json"
    checkpoint.mkdir(parents=True)
    data = str(named_corpus.folder)
    perplexity(
        PerplexityConfig(str(checkpoint), data, SEQ_LEN, TOKENS, 300, dtype="float32", out=str(out))
    )
    assert json.loads(out.read_text())["loss"] == scores["loss"]


@pytest.mark.slow
def test_loss_equals_that_of_single_documents(model, named_corpus, scores):
    """The loss computed per document, without padding and masks."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    nats = of_text = targets = size = 0.0
    for batch in held_out_batches(named_corpus, "code", SEQ_LEN, 1, TOKENS):
        tokens, labels = batch.tokens[0], batch.labels[0]
        starts = sorted({int(start) for start in batch.cu_seqlens if start < SEQ_LEN})
        for start, end in zip(starts, [*starts[1:], SEQ_LEN], strict=True):
            with torch.no_grad():
                chances = hf(tokens[None, start:end]).logits[0].log_softmax(-1)
            for place, label in enumerate(labels[start:end].tolist()):
                if label != IGNORED:
                    nats -= chances[place, label].item()
                    targets += 1
                    if label != named_corpus.tokenizer["eos_id"]:  # as lm-eval counts
                        of_text -= chances[place, label].item()
                        size += named_corpus.token_bytes()[label]
    assert of_text < nats
    assert scores["sources"]["code"]["loss"] == pytest.approx(nats / targets, rel=1e-5)
    bits = of_text / math.log(2) / size
    assert scores["sources"]["code"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_total_loss_weights_sources_by_tokens(scores):
    parts = scores["sources"].values()
    total = sum(part["tokens"] for part in parts)
    mean = sum(part["loss"] * part["tokens"] for part in parts) / total
    assert scores["loss"] == pytest.approx(mean)


def test_padding_keeps_every_token_once(named_corpus):
    found = list(held_out_batches(named_corpus, "code", SEQ_LEN, 3, TOKENS))
    parts = list(segments(found))
    assert sum(len(tokens) for tokens, _ in parts) == sum(batch.tokens.numel() for batch in found)
    batches = padded(parts, 300)
    assert all(tokens.numel() <= 300 for tokens, _, _ in batches)
    kept = np.concatenate([tokens[mask.bool()].numpy() for tokens, _, mask in batches])
    expected = np.concatenate([batch.tokens.flatten().numpy() for batch in found])
    assert sorted(kept) == sorted(expected)


def test_model_of_another_tokenizer_is_refused(make_model, named_corpus, tmp_path):
    folder = make_model(tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["pieces"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="the model's vocabulary differs"):
        perplexity(PerplexityConfig(str(folder), str(named_corpus.folder), SEQ_LEN, TOKENS))


def test_too_little_held_out_is_refused(model, named_corpus):
    with pytest.raises(InputError, match="has fewer tokens than one sequence"):
        perplexity(PerplexityConfig(str(model), str(named_corpus.folder), 50_000, 50_000))


def test_missing_model_is_refused(named_corpus, tmp_path):
    with pytest.raises(InputError, match=r"the folder has no config\.json"):
        perplexity(PerplexityConfig(str(tmp_path), str(named_corpus.folder), SEQ_LEN))


@pytest.mark.parametrize("key", ["seq_len", "tokens", "batch_tokens"])
def test_sizes_are_checked(key):
    sizes = {"seq_len": 8, "tokens": 8, "batch_tokens": 8} | {key: 0}
    with pytest.raises(InputError, match=f"{key}=0"):
        PerplexityConfig("model", "data", **sizes)
