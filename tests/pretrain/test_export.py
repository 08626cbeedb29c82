"""The exported folder is the trained model, for stock transformers."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.chat import ChatTemplate
from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, held_out_batches
from data_pipeline.store.manifest import tokenizer_fingerprint
from model.families.model_files import ModelFiles
from pretrain.export import ExportConfig, export, exported_settings, read_run_config
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


def test_tied_embeddings_are_stored_once(command, corpus, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    tied = [*arguments(corpus.folder, run, stop_after=1), "model.tie_embeddings=true"]
    for done in (command(*tied), command("pretrain", "export", f"run={run}", f"out={out}")):
        assert done.returncode == 0, done.stderr
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


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


def test_an_export_needs_no_corpus(exported, corpus, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported / "run", run)
    moved = tmp_path / "moved"
    shutil.copytree(corpus.folder, moved)
    settings = OmegaConf.load(run / "config.yaml")
    settings.data.folder = str(tmp_path / "gone")
    OmegaConf.save(settings, run / "config.yaml")
    template = ChatTemplate(name="none", template="{{ messages }}")
    export(ExportConfig(str(run), out=str(tmp_path / "a"), chat_template=template))
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (corpus.tokenizer_path.read_bytes())
    shutil.rmtree(run / "corpus")  # as in runs of earlier versions
    with pytest.raises(InputError, match=r"has no copy .*gone.* Give data=<folder of the corpus"):
        export(ExportConfig(str(run), out=str(tmp_path / "b"), chat_template=template))
    assert not (tmp_path / "b").exists()
    config = ExportConfig(
        str(run), out=str(tmp_path / "b"), chat_template=template, data=str(moved)
    )
    export(config)
    assert read_files(tmp_path / "b") == read_files(tmp_path / "a")
    manifest = json.loads((moved / "manifest.json").read_text())
    content = json.loads((moved / "tokenizer.json").read_text()) | {"version": "other"}
    (moved / "tokenizer.json").write_text(json.dumps(content))
    manifest["tokenizer"]["sha256"] = tokenizer_fingerprint(moved / "tokenizer.json")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    config.overwrite = True
    with pytest.raises(InputError, match=r"data=.*moved: the tokenizer .* is not that of run="):
        export(config)


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_exported_tokenizer_encodes_as_the_corpus_was(corpus, tmp_path):
    """Special tokens that only the vocabulary has, and a post-processor that adds one."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    tokenizer.post_processor = TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    content = json.loads(tokenizer.to_str()) | {"added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    out.mkdir()
    exported, settings = exported_settings(replace(corpus, folder=tmp_path), 256)
    ModelFiles({}, exported, settings, "{{ messages }}").write(out)
    loaded = AutoTokenizer.from_pretrained(out)
    text = "def main():"
    expected = Tokenizer.from_file(str(corpus.tokenizer_path)).encode(text).ids
    assert loaded(text).input_ids == expected
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.decode([1, *expected, 2], skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["step=7"], "step_7 does not exist. Give a step that has a checkpoint: 20, 15"),
        (["run=nowhere"], "nowhere/config.yaml does not exist"),
        (["dtype=float8"], "dtype=float8: unknown choice"),
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
