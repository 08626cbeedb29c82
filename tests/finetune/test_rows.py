"""Lines of a data file: what is read, and what is refused with which words."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from conf.errors import InputError
from finetune.rows import read_pairs, read_rows

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
        ([], r"no examples were found\. Give one example per line"),
        ([PAIR, "{"], r"x\.jsonl, line 2: invalid JSON"),
        (["3"], r"line 1: expected a JSON object, found 3"),
        (
            [{"instruction": "a", "output": "b"}],
            r"line 1: expected .* found 'instruction' and 'output'",
        ),
        (
            [{"prompt": "a"}],
            r"expected the keys of one of completion \(prompt, com.* found 'prompt'",
        ),
        (
            [PAIR | {"messages": [USER]}],
            r"match several formats, completion and messages\. Choose one with format=",
        ),
        (
            [PAIR, {"messages": [USER, ANSWER]}],
            r"2: expected the keys 'prompt' .* found 'messages'",
        ),
        ([PAIR, "", PAIR | {"completion": " "}], r"line 3: 'completion' has no text"),
        ([PAIR | {"prompt": None}], r"'prompt' is None. Give text or a list of messages"),
        ([{"messages": []}], r"'messages' is \[\]. Give"),
        ([{"messages": [USER]}], r"'messages' has no assistant message"),
        ([{"prompt": [USER], "completion": [USER]}], r"'completion' has no assistant message"),
        ([{"messages": [USER, ANSWER | {"content": " "}]}], r"has an empty assistant message"),
        ([{"messages": [USER, {"role": "bot", "content": "8."}]}], r"with the role 'bot'"),
        (
            [{"messages": [USER, {"from": "gpt", "value": "8."}]}],
            r"Give each message a role and content",
        ),
        ([PAIR, PAIR | {"prompt": "\ud83d"}], r"x\.jsonl, line 2: 'prompt' .* unpaired surrogate"),
        (
            [{"messages": [USER, ANSWER | {"content": "\udc00 8"}]}],
            r"'messages' .*\\udc00 is not valid",
        ),
        ([{"messages": [USER, ANSWER | {"content": None}]}], r"invalid: expected text, found null"),
        (
            [{"messages": [USER, ANSWER | {"content": None, "tool_calls": [{"id": "1"}]}]}],
            r"line 1: 'messages' has .* which calls a tool\. Remove such rows",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": "8.", "tool_calls": [{"id": "1"}]}]}],
            r"which calls a tool",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}],
            r"expected only parts of type 'text', found a part of type 'image_url'",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": [{"type": "text"}]}]}],
            r"expected a part with text under",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": ["8."]}]}],
            r"parts of type 'text', found '8\.'",
        ),
        ([{"messages": [USER, ANSWER | {"content": []}]}], r"expected text .*, found \[\]"),
        ([{"messages": [USER, ANSWER | {"content": 8}]}], r"expected text .*, found 8"),
    ],
)
def test_refused(tmp_path: Path, lines: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rows(write(tmp_path / "x.jsonl", *lines))


def test_content_in_parts(tmp_path: Path) -> None:
    """Content like OpenAI's clients write it, in messages or in their place; no tool calls."""
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "3 + 5?"}]
    rows = [
        {"messages": [USER | {"content": parts}, ANSWER | {"tool_calls": []}]},
        {"messages": [USER, ANSWER]},
    ]
    first, second = read_rows(write(tmp_path / "x.jsonl", *rows))
    assert first == second
    plain = {"prompt": [USER], "completion": [ANSWER]}
    assert read_rows(write(tmp_path / "y.jsonl", PAIR | {"prompt": parts})) == [plain]
    pair = {"prompt": parts, "chosen": "8.", "rejected": "9."}
    (read,) = read_pairs(write(tmp_path / "z.jsonl", pair))
    assert read["prompt"] == [USER]


PACKED = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data) + b"\0" * 512,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_files_as_people_have_them(tmp_path: Path, ending: str, mark: bytes) -> None:
    """Compression is detected by the first bytes and not by the name.

    Tested with and without a byte order mark, for lines and for an array, each alone and in a
    folder.
    """
    expected = [{"prompt": [USER], "completion": [ANSWER]}] * 2
    lines = b"\r\n".join(json.dumps(PAIR).encode() for _ in range(2))
    texts = [lines, json.dumps([PAIR, PAIR]).encode(), json.dumps([PAIR, PAIR], indent=2).encode()]
    texts += [b"\n".join(json.dumps(PAIR, indent=1).encode() for _ in range(2))]
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.json{'l' * (number % 2)}{ending}"
        path.write_bytes(PACKED[ending](mark + text))
        assert read_rows(path) == expected, text
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    assert read_rows(other) == expected
    other.unlink()
    assert len(read_rows(tmp_path)) == 2 * len(texts)


def test_files_with_marks_that_were_concatenated(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(("\ufeff" + json.dumps(PAIR) + "\n").encode() * 3)
    assert len(read_rows(path)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[{"prompt": "a", "completion": "b"},\n 3]',
            r"x\.json, item 2: expected a JSON object, found 3",
        ),
        ('[\n{"prompt": "a"},\n{"prompt" "b"}]', r"line 1: invalid JSON .* delimiter: line 3"),
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a",\n{',
            r"x\.json, line 2: invalid JSON",
        ),
        ("a,b\n", r"line 1: invalid JSON"),
        ("[" * 100000, r"line 1: invalid JSON"),
    ],
)
def test_json_that_is_damaged(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rows(write(tmp_path / "x.json", text))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_that_are_cut_off(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.jsonl{ending}"
    packed = PACKED[ending](json.dumps(PAIR).encode() * 50)
    path.write_bytes(packed.rstrip(b"\0")[:-12])
    with pytest.raises(InputError, match=rf"x\.jsonl\{ending} cannot be read"):
        read_rows(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(PAIR).encode(encoding))
    with pytest.raises(InputError, match=r"data=.*x\.jsonl: expected UTF-8 text, found UTF-16"):
        read_rows(path)


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
    with pytest.raises(InputError, match=r"x\.jsonl: invalid UTF-8 at byte 15"):
        read_rows(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        read_rows(tmp_path / "gone.jsonl")
