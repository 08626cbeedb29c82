"""The exported folder is the trained model, for stock transformers."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, held_out_batches
from pretrain.export import read_run_config
from tests.runs import arguments, records


@pytest.fixture(scope="module")
def exported(command, corpus, tmp_path_factory):
    """A run on two processes and its export in float32."""
    folder = tmp_path_factory.mktemp("exported")
    done = command(*arguments(corpus.folder, folder / "run"), processes=2)
    assert done.returncode == 0, done.stderr
    for step, dtype in (("latest", "float32"), ("0", "bfloat16")):
        done = command(
            "pretrain", "export", f"run={folder / 'run'}", f"step={step}",
            f"out={folder / step}", f"dtype={dtype}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def test_its_loss_in_stock_transformers_is_the_trainers(exported, corpus):
    model = AutoModelForCausalLM.from_pretrained(exported / "latest")
    last = records(exported / "run", "validation")[-1]
    for source, expected in last["sources"].items():
        total, targets = 0.0, 0
        for batch in held_out_batches(corpus, source, 128, 4, 2048):
            tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
            for start, end in itertools.pairwise(sorted(set(batch.cu_seqlens.tolist()))):
                with torch.no_grad():
                    logits = model(tokens[None, start:end]).logits[0]
                total += F.cross_entropy(logits, labels[start:end], reduction="sum").item()
                targets += int((labels[start:end] != IGNORED).sum())
        assert targets == expected["tokens"]
        assert total / targets == pytest.approx(expected["loss"], rel=1e-4)


def test_tokenizer_and_template_come_with_it(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported / "latest")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("a b\n\té").input_ids) == "a b\n\té"
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(said, tokenize=False)
    assert rendered == "<|prompt|>Hello</s><|answer|>Hi</s>"


def test_step_0_is_the_model_before_training(exported):
    from model.init import initial_value

    run = read_run_config(exported / "run")
    fresh = AutoModelForCausalLM.from_pretrained(exported / "0")
    assert fresh.dtype == torch.bfloat16
    for name, value in fresh.named_parameters():
        expected = initial_value(name.removeprefix("model."), value.shape, run.model, run.seed)
        assert torch.equal(value, expected.bfloat16()), name


def test_the_card_says_what_it_is(exported):
    card = (exported / "latest" / "README.md").read_text()
    assert "40,960 tokens in 20 steps of recipe demo" in card
    config = json.loads((exported / "latest" / "config.json").read_text())
    assert config["sliding_window"] == 24
    assert config["architectures"] == ["MistralForCausalLM"]


def test_training_goes_on_from_an_export(exported, command, corpus, tmp_path):
    run_dir = tmp_path / "continued"
    done = command(
        *arguments(corpus.folder, run_dir, init_from=exported / "latest", stop_after=1), processes=2
    )
    assert done.returncode == 0, done.stderr
    first = records(run_dir, "validation")[0]["loss"]
    assert first == pytest.approx(records(exported / "run", "validation")[-1]["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["step=7"], "step_7 does not exist, expected one of the steps: 20, 15"),
        (["run=nowhere"], "nowhere/config.yaml does not exist"),
        (["dtype=float8"], "dtype=float8 is not a choice"),
    ],
)
def test_what_cannot_be_exported_is_refused(exported, command, tmp_path, changes, sentence):
    out = tmp_path / "out"
    done = command("pretrain", "export", f"run={exported / 'run'}", f"out={out}", *changes)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not out.exists()


def test_a_run_config_is_read_back(exported):
    config = read_run_config(exported / "run")
    assert config.model.hidden_size == 64
    with pytest.raises(InputError, match="does not exist"):
        read_run_config(exported / "nothing")
