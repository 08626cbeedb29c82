"""Continuations against a loop by hand, chats against the model's own template."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import InputError
from eval.chat.generate import GenerateConfig, generate
from tests.corpora import read_json_lines


@pytest.fixture
def run(model, tmp_path):
    def run(**settings) -> list[dict]:
        out = tmp_path / "samples.jsonl"
        config = GenerateConfig(model=str(model), out=str(out), max_new_tokens=8, dtype="float32")
        generate(dataclasses.replace(config, overwrite=True, **settings))
        return read_json_lines(out)

    return run


def greedy(model: Path, text: str, count: int) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = start = tokenizer(text).input_ids
    for _ in range(count):
        with torch.no_grad():
            chosen = hf(torch.tensor([ids])).logits[0, -1].argmax().item()
        ids = [*ids, chosen]
        if chosen == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[len(start) :], skip_special_tokens=True))


def test_greedy_is_the_likeliest_token_each_time(run, model):
    rows = run(prompts=["import os\n", "def f(x):"])
    assert [row["prompt"] for row in rows] == ["import os\n", "def f(x):"]
    for row in rows:
        assert row["generated"] == greedy(model, row["prompt"], 8)


def test_seed_decides_what_is_sampled(run):
    first = run(prompts=["a"], temperature=1.0, seed=1, max_new_tokens=24)
    assert run(prompts=["a"], temperature=1.0, seed=1, max_new_tokens=24) == first
    assert run(prompts=["a"], temperature=1.0, seed=2, max_new_tokens=24) != first


def test_chat_uses_the_models_template(run, chat_model):
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sure?"},
    ]
    row = run(model=str(chat_model), prompts=["hello"], chat=True)[0]
    assert row["prompt"] == "<user>hello</s><assistant>"
    assert row["generated"] == greedy(chat_model, row["prompt"], 8)
    file = Path(row["model"]).parent / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": messages, "completion": "yes"}) + "\n")
    row = run(model=str(chat_model), prompts_file=str(file), chat=True)[0]
    assert row["prompt"] == "<user>2 + 2?</s><assistant>4</s><user>sure?</s><assistant>"
    assert row["reference"] == "yes"


def test_special_tokens_spelled_in_a_chat_are_plain_text(run, chat_model):
    """`</s>` in a question does not end it, the same as in tuning."""
    from eval.chat.chat import conversation_ids, truncated_ids
    from eval.load_model import load_model

    loaded = load_model(str(chat_model), "float32")
    question = {"role": "user", "content": "Strike <s>3</s> out"}
    ids = conversation_ids(loaded, [question])
    special = [i for i in ids[0].tolist() if i in loaded.tokenizer.all_special_ids]
    assert special == [loaded.tokenizer.eos_token_id]
    rendered = "<user>Strike <s>3</s> out</s><assistant>"
    assert loaded.tokenizer.decode(ids[0]) == rendered
    cut = truncated_ids(loaded, [question | {"content": "</s>" * 300}], max_new_tokens=16)[
        0
    ].tolist()
    assert sum(i in loaded.tokenizer.all_special_ids for i in cut) == 1
    row = run(model=str(chat_model), prompts=["Strike <s>3</s> out"], chat=True)[0]
    assert row["prompt"] == rendered
    model: Any = loaded.model
    written = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert row["generated"] == loaded.tokenizer.decode(written, skip_special_tokens=True)


def test_prompts_of_a_chat_file_are_continued_as_text(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    answer = [{"role": "assistant", "content": "b"}]
    rows = [{"prompt": [{"role": "user", "content": f"a{n}"}], "completion": answer} for n in "12"]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = run(prompts_file=str(file), limit=1)
    assert [(row["prompt"], row["reference"]) for row in found] == [("a1", "b")]


def test_prompts_of_a_text_file(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    assert [row["prompt"] for row in run(prompts_file=str(file))] == ["one", "two"]


def test_prompt_files_in_common_formats(run, tmp_path):
    """A byte order mark, compression, an array; content as text or in parts."""
    parts = [{"type": "text", "text": "o"}, {"type": "text", "text": "ne"}]
    rows = [{"prompt": "one"}, {"prompt": [{"role": "user", "content": parts}]}]
    for name, text in (
        ("a.jsonl.gz", "\n".join(map(json.dumps, rows))),
        ("b.json", json.dumps(rows, indent=2)),
        ("c.txt.gz", "one\none\n"),
    ):
        data = f"\ufeff{text}".encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        found = run(prompts_file=str(tmp_path / name))
        assert [row["prompt"] for row in found] == ["one", "one"], name


def test_a_prompt_longer_than_the_context_is_named(run):
    for length in (512, 2000):
        with pytest.raises(
            InputError, match=rf"has {length} tokens, but the context length of model=.* is 512"
        ):
            run(prompts=["a" * length])


def test_ended_is_true_after_an_eos_token(run):
    row = run(prompts=["x"], max_new_tokens=1)[0]
    assert row["ended"] is (row["generated"] == "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "there are no prompts"),
        ({"prompts": [""]}, "is empty"),
        ({"prompts": ["a"], "chat": True}, "has no chat template"),
        (
            {"prompts": ["a"], "model": "nowhere"},
            "model=nowhere: there is no such Hugging Face folder",
        ),
        ({"prompts": ["a"], "dtype": "int3"}, "dtype=int3"),
        ({"prompts_file": "nowhere.txt"}, r"prompts_file=nowhere\.txt: the file does not exist"),
        (
            {"prompts_file": "nowhere.jsonl"},
            r"prompts_file=nowhere\.jsonl: the file does not exist",
        ),
        ({"prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompts": ["a"], "temperature": -1.0}, "temperature=-1"),
        ({"prompts": ["a"], "top_p": 0.0}, "top_p=0"),
        ({"prompts": ["a"], "repetition_penalty": 0.0}, "repetition_penalty=0"),
    ],
)
def test_bad_input(run, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run(**settings)
    assert list(tmp_path.iterdir()) == []


def test_rows_without_a_prompt_are_named(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match="line 2: the key 'prompt' is missing"):
        run(prompts_file=str(file))
    file.write_text("{")
    with pytest.raises(InputError, match="line 1: invalid JSON"):
        run(prompts_file=str(file))
    for prompt, words in (
        (["hi"], "expected messages"),
        ([{"role": "user"}], "expected text, found null"),
        ([{"role": "user", "content": [{"text": "hi"}]}], "expected only parts of type 'text'"),
        ([{"role": "user", "content": "\ud83d"}], r"the unpaired surrogate \\ud83d is not valid"),
        ("Half an emoji \ud83d", r"the unpaired surrogate \\ud83d is not valid"),
    ):
        file.write_text(json.dumps({"prompt": prompt}))
        with pytest.raises(InputError, match=rf"line 1: 'prompt' is .* {words}"):
            run(prompts_file=str(file))
    with pytest.raises(InputError, match=r"prompts, 2: 'prompt' is 'b\\udce9': the unpaired"):
        run(prompts=["a", "b\udce9"])  # as Python has an argument that is not UTF-8
    file.write_text('{"prompt": "a", "completion": null}')
    assert "reference" not in run(prompts_file=str(file))[0]


def test_prompts_that_the_template_rejects(run, make_model, tmp_path):
    folder = make_model(tmp_path / "strict", chat=True)
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no system') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + "{{ messages[0]['content'] }}")
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "system", "content": "be kind"}]}))
    with pytest.raises(InputError, match=r"chat template rejects .*be kind.* \(no system\)"):
        run(model=str(folder), prompts_file=str(file), chat=True)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_file_in_another_encoding_is_named(run, tmp_path, name):
    (tmp_path / name).write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=f"{name}: invalid UTF-8 at byte 3"):
        run(prompts_file=str(tmp_path / name))


def test_a_damaged_model_is_reported_in_one_sentence(run, make_model, tmp_path):
    folder = make_model(tmp_path / "damaged")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the model cannot be loaded"):
        run(model=str(folder), prompts=["a"])
