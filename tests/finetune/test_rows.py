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
        ([], r"is empty\. Give one example on each line"),
        ([PAIR, "{"], r"x\.jsonl, line 2 is not JSON"),
        (["3"], r"line 1 is 3, not a JSON object"),
        ([{"instruction": "a", "output": "b"}], r"line 1 has the keys 'instruction' and 'output'"),
        (
            [{"prompt": "a"}],
            r"'prompt', expected those of one of completion \(prompt, com",
        ),
        (
            [PAIR | {"messages": [USER]}],
            r"which match completion and messages\. Choose one with format=",
        ),
        (
            [PAIR, {"messages": [USER, ANSWER]}],
            r"2 has the keys 'messages', expected 'prompt'",
        ),
        ([PAIR, "", PAIR | {"completion": " "}], r"line 3: 'completion' is empty"),
        ([PAIR | {"prompt": None}], r"'prompt' is None, expected text or messages"),
        ([{"messages": []}], r"'messages' is \[\], expected"),
        ([{"messages": [USER]}], r"'messages' has no assistant message"),
        ([{"prompt": [USER], "completion": [USER]}], r"'completion' has no assistant message"),
        ([{"messages": [USER, ANSWER | {"content": " "}]}], r"has an empty assistant message"),
        ([{"messages": [USER, {"role": "bot", "content": "8."}]}], r"has the role 'bot'"),
        ([{"messages": [USER, {"from": "gpt", "value": "8."}]}], r"expected role and content"),
        ([PAIR, PAIR | {"prompt": "\ud83d"}], r"x\.jsonl, line 2: 'prompt' .* half of a char"),
        (
            [{"messages": [USER, ANSWER | {"content": "\udc00 8"}]}],
            r"'messages' .*\\udc00, half",
        ),
        ([{"messages": [USER, ANSWER | {"content": None}]}], r"its content is null: expected text"),
        (
            [{"messages": [USER, ANSWER | {"content": None, "tool_calls": [{"id": "1"}]}]}],
            r"line 1: 'messages' holds .* which calls a tool\. The chat templates cannot",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": "8.", "tool_calls": [{"id": "1"}]}]}],
            r"which calls a tool",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}],
            r"a part of type 'image_url': expected parts of type 'text' only",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": [{"type": "text"}]}]}],
            r"expected 'text' in",
        ),
        (
            [{"messages": [USER, ANSWER | {"content": ["8."]}]}],
            r"the part '8\.': expected parts",
        ),
        ([{"messages": [USER, ANSWER | {"content": []}]}], r"its content is \[\]: expected text"),
        ([{"messages": [USER, ANSWER | {"content": 8}]}], r"its content is 8: expected text"),
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
        ('[{"prompt": "a", "completion": "b"},\n 3]', r"x\.json, item 2 is 3, not a JSON object"),
        ('[\n{"prompt": "a"},\n{"prompt" "b"}]', r"line 1 is not JSON: .* delimiter: line 3"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a",\n{', r"x\.json, line 2 is not JSON"),
        ("a,b\n", r"line 1 is not JSON"),
        ("[" * 100000, r"line 1 is not JSON"),
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
    with pytest.raises(InputError, match=r"data=.*x\.jsonl is UTF-16 text, expected UTF-8"):
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
    with pytest.raises(InputError, match=r"x\.jsonl is not UTF-8 at byte 15"):
        read_rows(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl is not a file"):
        read_rows(tmp_path / "gone.jsonl")
