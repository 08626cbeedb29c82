"""Tasks built from held-out files."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from typing import Any

import pytest
import yaml

from conf.errors import InputError
from data_pipeline.tokenizing.documents import read_documents, write_names
from eval.tasks.build_tasks import BuildTasksConfig, build_tasks, shuffled
from tests.corpora import read_json_lines

NAMES = [
    f"bytes_{source}_{kind}"
    for source in ("code", "prose")
    for kind in ("perplexity", "continuation", "word_order")
]


@pytest.fixture
def settings(named_corpus, tmp_path):
    """Returns a config with overrides."""

    def make(**overrides) -> BuildTasksConfig:
        values: dict[str, Any] = {
            "corpus": str(named_corpus.folder),
            "out": str(tmp_path / "tasks"),
            "questions": 16,
            "context_chars": 60,
            "continuation_chars": (20, 30),
        }
        return BuildTasksConfig(**(values | overrides))

    return make


def held_out(manifest, source):
    return [document.text for document in read_documents(manifest, "held_out", source)]


def test_a_task_file_reads_its_rows(tasks):
    assert sorted(path.stem for path in tasks.glob("*.yaml")) == sorted(NAMES)
    for name in NAMES:
        content = yaml.safe_load((tasks / f"{name}.yaml").read_text())
        assert content["task"] == name
        assert content["dataset_kwargs"]["data_files"]["test"] == str(tasks / f"{name}.jsonl")
    sizes = json.loads((tasks / "tasks.json").read_text())["tasks"]
    assert sizes == {name: len(read_json_lines(tasks / f"{name}.jsonl")) for name in NAMES}


@pytest.mark.parametrize("source", ["code", "prose"])
def test_the_correct_choice_follows_the_context_in_a_document(tasks, named_corpus, source):
    texts = held_out(named_corpus, source)
    rows = read_json_lines(tasks / f"bytes_{source}_continuation.jsonl")
    assert len(rows) == 12
    for row in rows:
        right = row["context"] + row["choices"][row["label"]]
        holders = [number for number, text in enumerate(texts) if right in text]
        assert holders
        for number, choice in enumerate(row["choices"]):
            if number != row["label"]:
                elsewhere = {n for n, text in enumerate(texts) if choice in text}
                assert elsewhere - set(holders), "cut out of another document"
                assert row["context"] + choice not in "\0".join(texts)


def test_choices_have_one_length_and_clean_ends(tasks):
    for source in ("code", "prose"):
        for row in read_json_lines(tasks / f"bytes_{source}_continuation.jsonl"):
            assert len(set(row["choices"])) == 4
            assert len({len(choice) for choice in row["choices"]}) == 1
            assert 20 <= len(row["choices"][0]) <= 30
            assert all(re.match(r" \S", choice) for choice in row["choices"])
            assert 0 < len(row["context"]) <= 60
            assert not row["context"][-1].isspace()


def test_labels_are_balanced(tasks):
    labels = [row["label"] for row in read_json_lines(tasks / "bytes_code_continuation.jsonl")]
    assert Counter(labels) == dict.fromkeys(range(4), 3)
    assert labels != sorted(labels)


def test_perplexity_reads_beginnings_of_held_out_documents(tasks, named_corpus):
    texts = held_out(named_corpus, "prose")
    rows = read_json_lines(tasks / "bytes_prose_perplexity.jsonl")
    assert len(rows) == len({row["text"] for row in rows}) == 5
    for row in rows:
        assert 0 < len(row["text"]) <= 200
        assert any(text.startswith(row["text"]) for text in texts)


def test_the_seed_determines_the_tasks(settings, tmp_path):
    def made(name, seed):
        build_tasks(settings(out=str(tmp_path / name), seed=seed))
        files = sorted((tmp_path / name).glob("*.jsonl"))
        return {file.name: file.read_bytes() for file in files}

    first = made("a", 0)
    assert made("b", 0) == first
    assert made("c", 1) != first


def test_existing_tasks_are_not_rebuilt(settings, tmp_path, capsys):
    build_tasks(settings())
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").iterdir()}
    build_tasks(settings())
    assert "already up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").iterdir()} == made
    with pytest.raises(
        InputError, match=r"tasks made from other inputs already exists there\. .*overwrite=true"
    ):
        build_tasks(settings(questions=8))
    build_tasks(settings(questions=8, overwrite=True))
    assert len(read_json_lines(tmp_path / "tasks" / "bytes_code_continuation.jsonl")) == 8


def test_foreign_folders_are_never_replaced(settings, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "precious").write_text("keep me")
    with pytest.raises(InputError, match="the folder contains precious, which is not part of"):
        build_tasks(settings(overwrite=True))
    assert (tmp_path / "tasks" / "precious").read_text() == "keep me"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"corpus": "nowhere"}, "nowhere"),
        ({"context_chars": 5000}, "source 'code' has too little held-out text"),
        ({"continuation_chars": (30, 20)}, r"continuation_chars=\[30,20\]"),
        ({"questions": -1}, "questions=-1: expected 0 or more"),
        ({"questions": 0, "documents": 0}, "there is no task to build"),
    ],
)
def test_bad_input_leaves_nothing(settings, tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        build_tasks(settings(**changes))
    assert not list(tmp_path.iterdir())


def test_duplicate_documents_are_not_used_as_choices(settings, named_corpus, tmp_path):
    from tests.corpora import byte_tokenizer, write_shard

    copied = tmp_path / "copied"
    shutil.copytree(named_corpus.folder, copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    same = [*byte_tokenizer().encode("one two three four five six seven " * 9).ids, 2]
    entry = write_shard(copied / "held_out" / "code-00009", [same] * 3)
    manifest["splits"]["held_out"]["code"] = [entry]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    write_names(copied / "held_out" / "code-00009", ["a.txt"] * 3, range(3))
    with pytest.raises(InputError, match="too little held-out text for a continuation task"):
        build_tasks(settings(corpus=str(copied), out=str(tmp_path / "tasks")))
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("source", ["code", "prose"])
def test_word_order_has_the_same_words_in_every_choice(tasks, source):
    rows = read_json_lines(tasks / f"bytes_{source}_word_order.jsonl")
    questions = read_json_lines(tasks / f"bytes_{source}_continuation.jsonl")
    real = {q["context"]: q["choices"][q["label"]] for q in questions}
    assert rows
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert len({tuple(sorted(choice.split())) for choice in row["choices"]}) == 1
        assert row["choices"][row["label"]] == real[row["context"]].rstrip()


@pytest.mark.parametrize("seed", range(20))
def test_no_shuffled_choice_is_the_real_one(seed):
    row = {"context": "c", "choices": ["x", " one two three \n"], "label": 1}
    for made in shuffled([row], random.Random(seed)):
        assert made["choices"][1] == " one two three"
        assert len(set(made["choices"])) == 4
