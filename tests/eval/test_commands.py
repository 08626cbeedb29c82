"""The commands of `python -m eval`: bad input is one sentence and leaves no output."""

from __future__ import annotations

import pytest

from eval.__main__ import COMMANDS
from tests.corpora import read_json_lines

REFUSED = {
    "build_tasks": ("corpus=nowhere", "nowhere/manifest.json does not exist"),
    "lm_eval": (
        "models.mine=nowhere",
        "models.mine=nowhere: there is no such Hugging Face folder or run",
    ),
    "perplexity": ("model=nowhere data=nowhere seq_len=8", "nowhere/manifest.json does not exist"),
    "generate": (
        "model=nowhere prompts=[a]",
        "model=nowhere: there is no such Hugging Face folder or run",
    ),
    "report": ("run=nowhere", "run=nowhere"),
    "chat": ("model=no/where/deep", "model=no/where/deep: the folder has no config.json"),
    "serve": ("model=no/where/deep", "model=no/where/deep: the folder has no config.json"),
    "compare": ("results=[nowhere]", "results=nowhere: the file does not exist"),
    "published": ("suite=nowhere", "suite=nowhere: unknown choice (known: danube3_academic"),
    "publish": ("model=no/where repo=me/it", "model=no/where: the folder does not exist"),
    "fetch": ("tasks=no/where", "tasks=no/where: the folder does not exist"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_inputs_are_named(command, tmp_path, name):
    arguments, sentence = REFUSED[name]
    out = (
        []
        if name in ("fetch", "chat", "serve", "publish", "published")
        else [f"out={tmp_path / 'out'}"]
    )
    done = command("eval", name, *arguments.split(), *out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("generate", "prompt=[a]"),
            "prompt is not a key of this config (did you mean",
        ),
        (("lm_eval", "model=a"), "model is not a key of this config (did you mean 'models'?)"),
        (
            ("lm_eval", "models=a"),
            "entries with names of your choice. Give each entry as models.NAME=...",
        ),
        (("generate", "prompts=a"), "prompts is a list. Give it as prompts=[...]"),
        (("perplexity", "seq_len=long"), "seq_len: value 'long'"),
        (("build_tasks", "corpus=x"), "out has no value"),
        (("comparr",), "unknown command 'comparr'"),
    ],
)
def test_a_wrong_key_value_or_command_is_named(command, arguments, sentence):
    done = command("eval", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_generate_writes_to_out(command, chat_model, tmp_path):
    """torchao, which transformers imports, prints nothing."""
    out = tmp_path / "deep" / "samples.jsonl"
    done = command(
        "eval",
        "generate",
        f"model={chat_model}",
        "prompts=[one,two words]",
        "chat=true",
        "max_new_tokens=4",
        f"out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert [row["prompt"] for row in read_json_lines(out)] == [
        "<user>one</s><assistant>",
        "<user>two words</s><assistant>",
    ]
    assert "two words" in done.stdout
    assert done.stderr == ""
