"""Bad input to `python -m finetune sft`: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from conf.errors import InputError
from finetune.config import LoggerConfig
from finetune.sft import sft


def refused(config, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sft(config)
    out = Path(config.out)
    assert not out.exists()
    assert not out.with_name(out.name + ".tmp").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model": "/nowhere"}, r"model=/nowhere: config\.json is missing"),
        ({"data": "/nowhere.jsonl"}, r"data=/nowhere\.jsonl: no such file"),
        ({"max_seq_len": 512}, r"max_seq_len=512: expected at most 256"),
        ({"max_seq_len": 8}, r"max_seq_len=8: no answer begins within"),
        ({"max_seq_len": 8, "packing": True}, r"max_seq_len=8: no answer begins within"),
        ({"batch_size": 6, "micro_batch_size": 4}, r"micro_batch_size=4: does not divide the 6"),
    ],
)
def test_refused(settings, overrides: dict, words: str) -> None:
    refused(settings(**overrides), words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"schedule": "cosin"}, r"schedule=cosin: unknown choice \(did you mean 'cosine'\?\)"),
        ({"precision": "fp8"}, r"precision=fp8: unknown choice"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0: expected a number above 0"),
        ({"warmup": 1.5}, r"warmup=1\.5: .* 0 or more and less than 1"),
    ],
)
def test_settings_refused(settings, overrides: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings(**overrides)


def test_batch_size_and_processes(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    refused(settings(), r"batch_size=8: not divisible by the 3 processes")


def test_wandb_online_without_a_key(
    settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    refused(
        settings(logger=LoggerConfig(wandb="online")), r"logger\.wandb=online: no API key was found"
    )


def test_out_that_holds_something_else(settings) -> None:
    config = settings()
    Path(config.out).mkdir()
    (Path(config.out) / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"the folder contains notes\.txt, .* Choose another folder"
    ):
        sft(config)
    assert (Path(config.out) / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_out_without_a_name(settings, out: str) -> None:
    with pytest.raises(
        InputError, match=f"out={re.escape(out)}: the path does not end with a name"
    ):
        sft(settings(out=out, overwrite=True))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"vocab_size": 512, "model_type": "unheard"}, "cannot be loaded"),
        ("tokenizer_config.json", {"eos_token": None}, "has no eos_token"),
    ],
)
def test_damaged_model(
    settings, base: Path, tmp_path: Path, file: str, change: dict, words: str
) -> None:
    model = tmp_path / "damaged"
    shutil.copytree(base, model)
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(content | change))
    refused(settings(model=str(model)), words)


def test_tokenizer_larger_than_the_model(settings, base: Path, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = tmp_path / "small"
    shutil.copytree(base, model)
    config = MistralConfig.from_pretrained(base)
    config.vocab_size = 256
    MistralForCausalLM(config).save_pretrained(model)
    refused(settings(model=str(model)), r"the tokenizer has 500 ids, more than vocab_size=256")


def test_truncated_weights(settings, base: Path, tmp_path: Path) -> None:
    model = tmp_path / "cut"
    shutil.copytree(base, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(settings(model=str(model)), "cannot be loaded")


def test_missing_weights(settings, base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "lacking"
    shutil.copytree(base, model)
    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused(settings(model=str(model)), r"weights .* are missing, such as model\.norm\.weight")


def test_command_line(settings, command, tmp_path: Path) -> None:
    config = settings()
    arguments = (f"model={config.model}", f"data={config.data}", f"out={tmp_path / 'chat'}")
    for override, words in {
        "data=gone.jsonl": "error: data=gone.jsonl: no such file",
        "learning_rat=1": "did you mean 'learning_rate'?",
        "epochs=many": "error: epochs: value 'many'",
        "chat_template=danub": "did you mean 'danube'?",
    }.items():
        done = command("finetune", "sft", *arguments, override)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    done = command("finetune", "sft", *arguments[1:])
    assert (done.returncode, done.stderr) == (
        2,
        "error: model has no value. Give model=...\n",
    )
    assert list(tmp_path.iterdir()) == []
