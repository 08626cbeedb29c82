"""No command replaces what Headwater did not make, and its own only with overwrite=true."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.entry import Command
from conf.errors import InputError
from data_pipeline.text.corpus import CorpusConfig, SourceConfig, TokenizerConfig
from tests.conf.test_entry import STAGES

NOT_OUTPUTS = {("launch", "demo"), ("launch", "chain"), ("launch", "study")}
"""Commands whose `out` is a folder of runs, in which every step has a separate output."""
TEXT: dict[str, Any] = {
    "corpus": CorpusConfig(name="none", sources={"a": SourceConfig(format="text", paths=["none"])}),
    "tokenizer": TokenizerConfig(),
}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("data_pipeline", "tokenize"): TEXT,
    ("data_pipeline", "plan"): TEXT,
    ("data_pipeline", "quality"): {"good": ["none"], "bad": ["none"]},
    ("data_pipeline", "pairs"): {"corpus": "none"},
    ("data_pipeline", "inspect"): {"data": "none"},
    ("data_pipeline", "import"): {"tokenizer": "none", "path": "none", "eos_token": "</s>"},
    ("model", "remap_vocab"): {"model": "none", "tokenizer": "none"},
    ("model", "gguf"): {"model": "none"},
    ("model", "import"): {"path": "none"},
    ("pretrain", "checkpoints"): {"dir": "none", "do": "export"},
    ("pretrain", "export"): {"run": "none"},
    ("pretrain", "average"): {"run": "none"},
    ("pretrain", "teach"): {"model": "none", "data": "none"},
    ("finetune", "sft"): {"model": "none", "data": "none"},
    ("finetune", "dpo"): {"model": "none", "data": "none"},
    ("finetune", "show"): {"model": "none", "data": "none"},
    ("eval", "build_tasks"): {"corpus": "none"},
    ("eval", "lm_eval"): {"models": {"mine": "none"}},
    ("eval", "compare"): {"results": ["none"]},
    ("eval", "perplexity"): {"model": "none", "data": "none", "seq_len": 1},
    ("eval", "generate"): {"model": "none", "prompts": ["a"]},
    ("eval", "report"): {"run": "none"},
    ("launch", "plan"): {
        **dict.fromkeys(("model", "recipe", "optim", "parallel")),
        "cluster": SimpleNamespace(bf16_tflops=1.0, fp8_tflops=1.0),
    },
}
CARD = "# x\n\nA base model pretrained from scratch with Headwater.\n"
PAGE = "<!DOCTYPE html>\n<title>x · Headwater plan</title>\n"
PAIR = {"prompt": [], "completion": [], "file": "a"}
MANIFEST = {"format": 2, "tokenizer": {"file": "tokenizer.json"}, "splits": {"train": {}}}
MODEL = {"config.json": "{}", "README.md": CARD, "model.safetensors": ""}
OWN: dict[str, dict[str, str] | str] = {
    "tokenize": {"manifest.json": json.dumps(MANIFEST), "tokenizer.json": "{}"},
    "import": {"manifest.json": json.dumps(MANIFEST), "tokenizer.json": "{}"},
    "quality": '{"format": 1, "buckets": 512, "most_chars": 20000}\ntree\n',
    "pairs": {"train.jsonl": json.dumps(PAIR), "held_out.jsonl": ""},
    "inspect": PAGE,
    "report": PAGE,
    "show": PAGE,
    "plan": PAGE,
    "data_pipeline plan": '{"preparation_plan": 1, "array": {}}',
    "remap_vocab": {"config.json": "{}", "remap_vocab.json": '{"model": "a"}'},
    "gguf": "GGUF\3\0\0\0 general.architecture headwater.model",
    "model import": MODEL,
    "checkpoints": MODEL,
    "export": MODEL,
    "average": MODEL,
    "teach": {
        "manifest.json": '{"teacher": {}, "top_k": 1, "order": {}, "files": []}',
        "stage_0/000000000000.bin": "",
    },
    "sft": {"config.json": "{}", "sft.json": '{"model": "a"}', "metrics.jsonl": ""},
    "dpo": {"config.json": "{}", "dpo.json": '{"model": "a"}', "metrics.jsonl": ""},
    "build_tasks": {
        "tasks.json": '{"inputs": "", "corpus": "a", "tasks": {"a": 1}}',
        "a.yaml": "",
        "a.jsonl": "",
    },
    "lm_eval": '{"format": 1, "models": {}}',
    "compare": '{"baseline": "a", "differences": []}',
    "perplexity": '{"model": "a", "seq_len": 1, "loss": 1, "sources": {}}',
    "generate": '{"prompt": "a", "generated": "b", "ended": true, "model": "a"}\n',
}


def own_of(stage: str, name: str) -> dict[str, str] | str:
    """Returns an output of a command, which is found by its name, or by both if two share it."""
    return OWN.get(f"{stage} {name}") or OWN[name]


def commands() -> Iterator[tuple[str, str, Command]]:
    """All commands that make an output."""
    for stage in STAGES:
        for name, command in importlib.import_module(f"{stage}.__main__").COMMANDS.items():
            keys = {field.name for field in fields(load(command.schema))}
            if "out" in keys and (stage, name) not in NOT_OUTPUTS:
                assert "overwrite" in keys
                yield stage, name, command


def load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


EVERY = [pytest.param(*entry, id="-".join(entry[:2])) for entry in commands()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs a command whose inputs do not exist: the output is checked before them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(stage: str, name: str, command: Command, **settings: Any) -> None:
        config = load(command.schema)(**SETTINGS[stage, name], **settings)
        load(command.run)(config)

    return call


def tree(folder: Path) -> dict[str, str | None]:
    """Returns the contents of all files in a folder."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def place(path: Path, content: dict[str, str] | str) -> None:
    """Makes a file, or a folder of files."""
    if isinstance(content, str):
        path.write_text(content)
        return
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("stage", "name", "command"), EVERY)
def test_what_others_made_stays(stage, name, command, overwrite, run, tmp_path):
    is_folder = isinstance(own_of(stage, name), dict)
    place(tmp_path / "models", {"keep/notes.txt": "important"})
    place(tmp_path / "notes", "important")
    place(tmp_path / "hub", {"config.json": "{}", "model.safetensors": "x", "README.md": "# Llama"})
    place(tmp_path / "data.json", '{"models": {}, "mine": 1}')
    before = tree(tmp_path)
    # A trailing slash, a link and a detour name the same place.
    (tmp_path / "link").symlink_to(tmp_path / "models")
    for out in ("models", "models/", "link", "notes", "hub", "data.json", "hub/../notes"):
        with pytest.raises(InputError, match=rf"^out={out}: (the|it|.* is)\b.*[.]$") as error:
            run(stage, name, command, out=out, overwrite=overwrite)
        assert ("the folder contains" in str(error.value)) == (
            is_folder and out[0] in "mhl" and "/n" not in out
        )
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("stage", "name", "command"), EVERY)
def test_a_place_without_a_name_is_refused(stage, name, command, run, tmp_path):
    for out in (".", "..", "/"):
        with pytest.raises(InputError, match=r"^out=\S+: the path does not end with a name\."):
            run(stage, name, command, out=out, overwrite=True)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(("stage", "name", "command"), EVERY)
def test_its_own_is_replaced_only_when_asked(stage, name, command, run, tmp_path, monkeypatch):
    """If the output may be replaced, the error is about the missing inputs."""
    place(tmp_path / "out", own_of(stage, name))
    before = tree(tmp_path)
    if name not in (
        "lm_eval",
        "tokenize",
        "build_tasks",
        "sft",
        "dpo",
        "teach",
    ):  # may be up to date
        with pytest.raises(
            InputError, match=r"^out=out: a.* already exists there\..*overwrite=true"
        ):
            run(stage, name, command, out="out")
    with pytest.raises(Exception, match=r".") as error:
        run(stage, name, command, out="out", overwrite=True)
    assert not str(error.value).startswith("out=")
    assert tree(tmp_path) == before
    if isinstance(own_of(stage, name), dict):
        place(tmp_path / "out", {"notes.txt": "mine"})
        with pytest.raises(InputError, match=r"^out=out: the folder contains notes\.txt"):
            run(stage, name, command, out="out", overwrite=True)


def test_the_folder_that_is_read_is_not_written(run, tmp_path):
    """Even where it is Headwater's own, under another name."""
    place(tmp_path / "models" / "a", MODEL)
    (tmp_path / "link").symlink_to("models")
    for out in ("models/a", "link/a", "models"):
        for stage, name, key in [
            ("finetune", "sft", "model"),
            ("finetune", "dpo", "model"),
            ("model", "remap_vocab", "model"),
            ("pretrain", "export", "run"),
            ("pretrain", "average", "run"),
        ]:
            command = importlib.import_module(f"{stage}.__main__").COMMANDS[name]
            settings = SETTINGS[stage, name] | {key: "models/a", "out": out, "overwrite": True}
            with pytest.raises(
                InputError, match=r"^out=.*: this path is or contains models/a, which the"
            ):
                load(command.run)(load(command.schema)(**settings))
