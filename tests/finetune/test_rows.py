"""Lines of a data file: what is read, and what is refused with which words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from conf.errors import InputError
from finetune.rows import read_rows

USER = {"role": "user", "content": "What is 3 + 5?"}
ANSWER = {"role": "assistant", "content": "8."}
PAIR = {"prompt": "What is 3 + 5?", "completion": "8."}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def test_a_pair_of_strings_is_a_turn_and_its_answer(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "x.jsonl", PAIR | {"source": "ignored"}, "", PAIR))
    assert rows == [{"prompt": [USER], "completion": [ANSWER]}] * 2


def test_conversations(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}
    assert read_rows(write(tmp_path / "x.jsonl", row)) == [row]
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert read_rows(write(tmp_path / "y.jsonl", row)) == [row]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], r"is empty: expected an example on each line"),
        ([PAIR, "{"], r"x\.jsonl, line 2 is not JSON"),
        (["3"], r"line 1 is no JSON object"),
        ([{"instruction": "a", "output": "b"}], r"line 1 has the keys 'instruction' and 'output'"),
        (
            [{"prompt": "a"}],
            r"'prompt': expected those of one of completion \(prompt, com",
        ),
        ([PAIR | {"messages": [USER]}], r"which fit completion and messages: say which .* format="),
        (
            [PAIR, {"messages": [USER, ANSWER]}],
            r"2 has the keys 'messages': expected 'prompt'",
        ),
        ([PAIR, "", PAIR | {"completion": " "}], r"line 3: 'completion' is empty"),
        ([PAIR | {"prompt": None}], r"'prompt' is None: expected text or messages"),
        ([{"messages": []}], r"'messages' is \[\]: expected"),
        ([{"messages": [USER]}], r"'messages' has no assistant message"),
        ([{"prompt": [USER], "completion": [USER]}], r"'completion' has no assistant message"),
        ([{"messages": [USER, ANSWER | {"content": " "}]}], r"has an empty assistant message"),
        ([{"messages": [USER, {"role": "bot", "content": "8."}]}], r"has the role 'bot'"),
        ([{"messages": [USER, {"from": "gpt", "value": "8."}]}], r"expected role and content"),
    ],
)
def test_refused(tmp_path: Path, lines: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rows(write(tmp_path / "x.jsonl", *lines))


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(json.dumps(PAIR).encode() * 50))
    packed[20:30] = b"\xff" * 10
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"x\.jsonl\.gz cannot be read"):
        read_rows(path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9", "completion": "b"}')
    with pytest.raises(InputError, match=r"x\.jsonl is not UTF-8 at byte 15"):
        read_rows(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl is no file"):
        read_rows(tmp_path / "gone.jsonl")
