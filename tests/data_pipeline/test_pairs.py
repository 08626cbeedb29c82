"""Pairs of functions and docstrings are complete, distinct, and in the split of their file."""

from __future__ import annotations

import ast
import json
import shutil

import pytest

from conf.errors import InputError
from data_pipeline.pairs import QUESTION, PairsConfig, functions, pairs
from data_pipeline.store.manifest import load_manifest
from data_pipeline.tokenizing.documents import read_documents

MODULE = '''
class Box:
    async def open(self, key):
        """Opens the box with a key.

        A second paragraph that is left out.
        """
        if key is None:
            raise ValueError("a key is needed to open the box")
        return await self.lock.turn(key)

    def test_open(self):
        """Checks that the box opens with its key."""
        assert self.open("a key that is long enough for this") is not None

    def bare(self):
        return "no docstring, however long this function may be at the end"

    def short(self):
        """Too short."""
        return "a function with a docstring of only a few letters, not enough"

    def only(self):
        """A function that has nothing but its docstring, so nothing to describe."""

    def same_line(self): """A docstring on the line of its function."""; return "x" * 60 + "yyyyyyy"
'''


def test_functions_are_whole_and_without_their_docstring():
    ((code, docstring),) = functions(MODULE, PairsConfig())
    assert docstring == "Opens the box with a key."
    assert code.startswith("async def open(self, key):\n    if key is None:")
    assert code.endswith("return await self.lock.turn(key)")
    assert "box with a key" not in code
    ast.parse(code)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_counted_as_python_does(end):
    text = f'"""\x0c\u2028"""\n{MODULE}'.replace("\n", end)
    ((code, _),) = functions(text, PairsConfig())
    assert code.startswith("async def open(self, key):")
    assert code.endswith("turn(key)")


@pytest.mark.parametrize("text", ["def f(:", "\0", "(" * 10_000, "plain words"])
def test_text_that_is_not_python_has_none(text):
    assert list(functions(text, PairsConfig())) == []


@pytest.mark.parametrize("limits", [{"max_code_chars": 70}, {"max_docstring_chars": 24}])
def test_long_functions_and_docstrings_are_skipped(limits):
    assert list(functions(MODULE, PairsConfig(**limits))) == []


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_a_corpus(tokenized, tmp_path, capsys):
    config = PairsConfig(corpus=str(tokenized.folder), out=str(tmp_path / "pairs"), max_per_file=2)
    pairs(config)
    printed = capsys.readouterr().out
    answers = {}
    for split in ("train", "held_out"):
        files = {d.file: d.text for d in read_documents(tokenized, split, "code")}
        rows = rows_of(tmp_path / "pairs" / f"{split}.jsonl")
        assert len(rows) > 3
        assert f"{split}.jsonl: {len(rows)} pairs" in printed
        for row in rows:
            (question,), (answer,) = row["prompt"], row["completion"]
            assert (question["role"], answer["role"]) == ("user", "assistant")
            assert question["content"].startswith(QUESTION)
            first_line = answer["content"].splitlines()[0]
            assert first_line in files[row["file"]]
            assert question["content"].splitlines()[2].strip() in files[row["file"]]
        answers[split] = [row["completion"][0]["content"] for row in rows]
        assert len(set(answers[split])) == len(rows)
        taken = [row["file"] for row in rows]
        assert max(map(taken.count, taken)) == 2
    assert not set(answers["train"]) & set(answers["held_out"])


def test_limits(tokenized, tmp_path):
    config = PairsConfig(corpus=str(tokenized.folder), out=str(tmp_path), limit=3, held_out_limit=0)
    pairs(config)
    assert len(rows_of(tmp_path / "train.jsonl")) == 3
    assert rows_of(tmp_path / "held_out.jsonl") == []


def test_preferences_are_other_functions_with_another_s_docstring(tokenized, tmp_path):
    folder = str(tokenized.folder)
    pairs(PairsConfig(corpus=folder, out=str(tmp_path / "all"), held_out_limit=0))
    pairs(
        PairsConfig(
            corpus=folder, out=str(tmp_path / "few"), limit=3, preferences=2, held_out_limit=0
        )
    )
    rows = rows_of(tmp_path / "all" / "train.jsonl")[:7]
    assert rows_of(tmp_path / "few" / "train.jsonl") == rows[:3]
    compared = rows_of(tmp_path / "few" / "preferences.jsonl")
    assert [(c["prompt"], c["chosen"]) for c in compared] == [
        (row["prompt"], row["completion"]) for row in (rows[3], rows[5])
    ]
    assert [c["rejected"] for c in compared] == [rows[i]["completion"] for i in (4, 6)]


def test_a_source_that_is_missing_or_not_python_is_refused(tokenized, tmp_path):
    corpus, out = str(tokenized.folder), str(tmp_path / "out")
    with pytest.raises(
        InputError, match=r"source=coed: not a source of .*\. Choose one of code, prose"
    ):
        pairs(PairsConfig(corpus, "coed", out))
    with pytest.raises(InputError, match=r"the train split of .* has no function with a docstring"):
        pairs(PairsConfig(corpus, "prose", out))
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_named(tokenized, tmp_path):
    copy = load_manifest(shutil.copytree(tokenized.folder, tmp_path / "copy"))
    path = copy.folder / f"{copy.shards('train', 'code')[0]['file']}.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"code-00000\.bin has \d+ bytes"):
        pairs(PairsConfig(corpus=str(copy.folder), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
