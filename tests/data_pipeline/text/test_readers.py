"""Every format gives the same documents, and errors name what cannot be read."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from conf.errors import InputError
from conf.folders import expand
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.readers import read_unit
from data_pipeline.text.units import SourceFile, Unit, list_files, plan_units

TEXTS = ["one line", "two\nlines", "Grüße 日本 🎉", " "]
LINES = [json.dumps({"body": text, "id": n}).encode() + b"\n" for n, text in enumerate(TEXTS)]


def rows_of(source):
    corpus = CorpusConfig(name="x", sources={"web": source})
    return [row for unit in plan_units(corpus) for row in read_unit(unit, source)]


def read(source):
    """(name, line, text) of all documents of one source, none of them with a flaw."""
    rows = rows_of(source)
    assert not any(row.flaw for row in rows)
    return [(row.file, row.line, row.text) for row in rows]


def write_jsonl(path):
    path.write_bytes(b"".join(LINES))


def write_gz(path):  # of two members, as `cat a.gz b.gz` makes them
    path.write_bytes(b"".join(gzip.compress(b"".join(part)) for part in (LINES[:2], LINES[2:])))


def write_zst(path):
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(b"".join(compress(b"".join(part)) for part in (LINES[:2], LINES[2:])))


def write_parquet(path):
    table = pa.table({"body": TEXTS, "id": list(range(len(TEXTS)))})
    pq.write_table(table, path, row_group_size=2)


PACK = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
"""A frame that zstd skips and that pzstd writes first."""


@pytest.mark.parametrize(
    ("name", "kind", "write"),
    [
        ("a.jsonl", "jsonl", write_jsonl),
        ("a.jsonl.gz", "jsonl", write_gz),
        ("a.jsonl.zst", "jsonl", write_zst),
        ("a.parquet", "parquet", write_parquet),
    ],
)
def test_rows(tmp_path, name, kind, write):
    write(tmp_path / name)
    found = read(SourceConfig(format=kind, paths=[str(tmp_path / "*")], text_field="body"))
    assert found == [(name, n, text) for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("padding", [b"", b"\0" * 5, b"\0" * (1 << 17)])
def test_members_and_nuls_behind_them_are_read(tmp_path, ending, padding):
    members = [PACK[ending](b"".join(part)) + padding for part in (LINES[:2], LINES[2:])]
    start = SKIPPED if ending == "zst" else b""
    (tmp_path / f"a.jsonl.{ending}").write_bytes(start + b"".join(members))
    found = read(SourceConfig(format="jsonl", paths=[str(tmp_path)], text_field="body"))
    assert [text for _, _, text in found] == TEXTS


@pytest.mark.parametrize("ending", ["", *PACK])
def test_byte_order_marks_take_no_row(tmp_path, ending):
    mark = b"\xef\xbb\xbf"
    # Files with a mark each that were put end to end, the last of them without a line of its own.
    content = b"".join([mark, *LINES[:2], mark, mark, *LINES[2:], mark, b"\r\n", mark])
    path = tmp_path / f"a.jsonl{ending and '.'}{ending}"
    path.write_bytes(PACK[ending](content) if ending else content)
    found = read(SourceConfig(format="jsonl", paths=[str(path)], text_field="body"))
    assert [text for _, _, text in found] == TEXTS


def test_a_byte_order_mark_is_removed_from_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße".encode())
    (tmp_path / "b.txt").write_bytes("\ufeff".encode())
    found = read(SourceConfig(paths=[str(tmp_path)]))
    assert sorted(text for _, _, text in found) == ["", "Grüße"]
    table = pa.table({"text": pa.array(["\ufeffGrüße".encode()], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(SourceConfig(format="parquet", paths=[str(tmp_path / "a.parquet")]))
    assert [text for _, _, text in found] == ["Grüße"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_another_encoding_is_named(tmp_path, encoding):
    name = encoding[:6].upper()
    (tmp_path / "a.txt").write_bytes("some text".encode(encoding))
    (row,) = rows_of(SourceConfig(paths=[str(tmp_path / "a.txt")]))
    assert (row.text, row.flaw) == ("", f"expected UTF-8 text, found {name} text")
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a"}\n'.encode(encoding) * 9)
    with pytest.raises(
        InputError, match=rf"a\.jsonl cannot be read .*: .*found {name} text.*iconv"
    ):
        rows_of(SourceConfig(format="jsonl", paths=[str(path)]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps([{"text": "a"}] * 9), "found an array. .* jq -c '.\\[\\]'"),
        (json.dumps([{"text": "a"}], indent=2), "found an array"),
        (json.dumps(["a", "b"], indent=2), "found an array"),
        (json.dumps({"text": "a"}, indent=2), "an object that spans several lines. .* jq -c ."),
        (b"\xef\xbb\xbf \r\n[{}]", "found an array"),
        (gzip.compress(b'{"text": "a"}\n', mtime=0), "found gzip data.* ends in .gz"),
        (PACK["zst"](b'{"text": "a"}\n'), "found zstd data.* ends in .zst"),
    ],
)
def test_files_without_json_lines_are_named(tmp_path, content, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=rf"a\.jsonl cannot be read as jsonl: .*{says}"):
        rows_of(SourceConfig(format="jsonl", paths=[str(path)]))


def test_a_row_that_is_not_an_object_is_named(tmp_path):
    values = [["a", "b"], "a", 1.5, None, True, {"text": [1, 2]}, {"text": {}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, values)))
    rows = rows_of(SourceConfig(format="jsonl", paths=[str(tmp_path)]))
    expected = "expected an object with 'text', found "
    assert [row.flaw.removeprefix(expected) for row in rows] == [
        "an array of 2",
        "a string",
        "a number",
        "null",
        "a boolean",
        "expected text in 'text', found an array of 2",
        "expected text in 'text', found an object",
    ]


BYTES = [b"plain", "Grüße".encode(), b"caf\xe9", None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(BYTES, pa.binary()),
        pa.array(BYTES, pa.large_binary()),
        pa.array(BYTES, pa.binary_view()),
        pa.array(BYTES, pa.binary()).dictionary_encode(),
        pa.array(BYTES, pa.binary()).view(pa.string()),
        pa.array(BYTES, pa.large_binary()).view(pa.large_string()),
        pa.array(BYTES, pa.binary()).view(pa.string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_of_parquet_are_text(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    rows = rows_of(SourceConfig(format="parquet", paths=[str(tmp_path)]))
    assert [row.text for row in rows] == ["plain", "Grüße", "", ""]
    assert [row.flaw for row in rows] == ["", "", "invalid UTF-8 at byte 3", ""]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([[1], [2]]), "list<element: int64>"),
        (pa.array([1, 2]), "int64"),
        (pa.array([{"a": 1}]), "struct<a: int64>"),
    ],
)
def test_a_column_without_text_is_named(tmp_path, column, kind):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet .*the column 'text', found {kind}"):
        rows_of(SourceConfig(format="parquet", paths=[str(tmp_path)]))


def test_a_column_of_nulls_or_twice(tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    assert [row.text for row in rows_of(SourceConfig("parquet", [str(tmp_path)]))] == ["", ""]
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"2 columns are named 'text'. Rename all but one"):
        rows_of(SourceConfig("parquet", [str(tmp_path)]))


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"meta": {"a": 1}}, {"meta": "x"}, "'meta' is an object in a.jsonl, but string in b"),
        ({}, {"extra": "x"}, "'extra' is missing in a.jsonl, but string in b.jsonl"),
        ({"n": 1}, {"n": "x"}, "'n' is int64 in a.jsonl, but string in b.jsonl"),
        ({"n": ["x"]}, {"n": "x"}, "'n' is a list in a.jsonl, but string in b.jsonl"),
    ],
)
def test_a_dataset_whose_files_differ(tmp_path, first, second, says):
    for name, more in (("a", first), ("b", second)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name, **more}) + "\n")
    source = SourceConfig(format="huggingface", paths=[str(tmp_path)])
    with pytest.raises(InputError, match=rf"{tmp_path} cannot be read .*: column {says}"):
        rows_of(source)


def test_a_local_dataset_is_streamed(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    source = SourceConfig(format="huggingface", paths=[str(tmp_path)], text_field="body")
    assert [text for _, _, text in read(source)] == TEXTS
    (file,) = list_files("web", source, 0)
    assert file.bytes == (tmp_path / "train.jsonl").stat().st_size  # so that changes are noticed


@pytest.fixture
def tree(tmp_path):
    """A folder of files for the rules of a text source."""
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.md", "skip/d.txt", "e.py"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 10)
    (tmp_path / "tree" / "empty.txt").touch()
    (tmp_path / "tree" / "nowhere.txt").symlink_to("missing")
    return tmp_path / "tree"


def names(source, seed=0):
    return sorted(file.name for file in list_files("web", source, seed))


def test_folders_are_read_with_their_rules(tree):
    source = SourceConfig(paths=[str(tree)], suffixes=[".txt", ".md"], exclude=["skip/*"])
    assert names(source) == ["a.txt", "sub/b.txt", "sub/deep/c.md"]
    assert read(source)[0][2] is not None
    small = SourceConfig(paths=[str(tree)], max_file_bytes=60, suffixes=[".txt"])
    assert names(small) == ["a.txt"]
    large = SourceConfig(paths=[str(tree)], min_file_bytes=100)
    assert names(large) == ["skip/d.txt", "sub/deep/c.md"]


def test_globs_and_overlapping_patterns_name_a_file_once(tree):
    source = SourceConfig(paths=[str(tree / "**" / "*.txt"), str(tree / "a.txt")])
    assert names(source) == ["a.txt", "skip/d.txt", "sub/b.txt"]


def test_folders_behind_links_are_read_once(tree, tmp_path):
    other = tmp_path / "elsewhere" / "part2"
    other.mkdir(parents=True)
    for name in ("x.txt", "y.txt"):
        (other / name).write_text(name)
    expected = [*names(SourceConfig(paths=[str(tree)], suffixes=[".txt"])), "p/x.txt", "p/y.txt"]
    (tree / "p").symlink_to(other)
    (tree / "q").symlink_to(other)  # the same folder again
    (tree / "first").symlink_to(tree / "sub")  # also in the folder under its own name
    (other / "back").symlink_to(tree)
    (tree / "sub" / "here").symlink_to(".")
    (tree / "sub" / "up").symlink_to(tmp_path)
    assert names(SourceConfig(paths=[str(tree)], suffixes=[".txt"])) == sorted(expected)
    recursive = SourceConfig(paths=[str(tree / "**" / "*.txt")])
    assert names(recursive) == sorted(expected)
    (other / "back").unlink()
    assert names(SourceConfig(paths=[str(tree / "p")])) == ["x.txt", "y.txt"]


def test_a_broken_link_is_reported(tree, capsys):
    assert "nowhere.txt" not in names(SourceConfig(paths=[str(tree)]))
    assert f"skipped the broken link {tree / 'nowhere.txt'}" in capsys.readouterr().out
    (tree / "part2").symlink_to("not mounted")
    names(SourceConfig(paths=[str(tree)], suffixes=[".txt"]))
    assert f"skipped the broken link {tree / 'nowhere.txt'} and 1 more" in capsys.readouterr().out
    names(SourceConfig(paths=[str(tree)], exclude=["nowhere.txt", "part2"]))
    assert not capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_named(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"tree/sub cannot be read \(Permission denied\)"):
        names(SourceConfig(paths=[str(tree)]))


@pytest.mark.parametrize(
    "pattern",
    ["tree/**/*.txt", "tree/**", "**/*.md", "*/**/c.md", "tree/**/", "tree/*/**/*", "**/sub/**/*"],
)
def test_recursive_globs_match_what_pythons_do(tree, monkeypatch, pattern):
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "x.txt").touch()
    (tree / "[1]").mkdir()
    (tree / "[1]" / "x.txt").touch()
    monkeypatch.chdir(tree.parent)
    for found in (pattern, str(tree.parent / pattern)):
        assert expand(found) == sorted(set(glob.glob(found, recursive=True)))


def test_the_order_of_files_is_keyed_and_the_limit_takes_a_prefix(tree):
    for number in range(50):
        (tree / f"{number:02}.txt").write_text("x" * 100)
    source = SourceConfig(paths=[str(tree)], suffixes=[".txt"])
    orders = [[f.name for f in list_files("web", source, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    limited = SourceConfig(paths=[str(tree)], suffixes=[".txt"], max_bytes=2000)
    taken = list_files("web", limited, 0)
    assert [file.name for file in taken] == orders[0][: len(taken)]
    assert 2000 <= sum(file.bytes for file in taken) < 2100


def test_text_files_share_units_and_files_of_rows_do_not(tree):
    source = SourceConfig(paths=[str(tree)], suffixes=[".txt"])
    sizes = [
        len(plan_units(CorpusConfig(name="x", shard_bytes=size, sources={"web": source})))
        for size in (1, 10**6)
    ]
    assert sizes == [3, 1]
    for name in ("a", "b"):
        write_jsonl(tree / f"{name}.jsonl")
    rows = SourceConfig(format="jsonl", paths=[str(tree / "*.jsonl")])
    units = plan_units(CorpusConfig(name="x", sources={"web": rows}))
    assert [len(unit.files) for unit in units] == [1, 1]


def test_unusable_rows_have_a_flaw(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (row,) = rows_of(SourceConfig(paths=[str(tmp_path)]))
    assert (row.text, row.flaw) == ("", "invalid UTF-8 at byte 2")
    lines = [
        b'{"text": "fine", "more": NaN}',
        b'{"text": "\xe9"}',
        b"",
        b'{"text": "\\ud800"}',
        b'{"text": null}',
        b'{"text": ',
        b'{"body": "x"}',
        b'{"text": 7}',
        b"[1]",
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    rows = rows_of(SourceConfig(format="jsonl", paths=[str(tmp_path / "rows.jsonl")]))
    found = [(row.line, row.text, row.flaw) for row in rows]
    assert [line for line, *_ in found] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert found[0] == (0, "fine", "")
    assert found[3] == (4, "", "")
    for place, says in (
        (1, "invalid UTF-8 at byte 10"),
        (2, "not valid Unicode"),
        (4, "invalid JSON"),
        (5, "no column 'text' (columns: body)"),
        (6, "expected text in 'text', found a number"),
        (7, "expected an object with 'text', found an array of 1"),
    ):
        assert says in found[place][2]
    assert rows[5].raw == '{"body": "x"}'
    assert lines[7] == (tmp_path / "rows.jsonl").read_bytes()[rows[6].position :].split(b"\n")[0]


def test_a_large_file_of_plain_lines_is_cut_at_lines(tmp_path):
    texts = [f"{n} " + "wörd " * (n * 7919 % 40) for n in range(200)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    source = SourceConfig(format="jsonl", paths=[str(path)])
    whole = rows_of(source)
    assert [row.text for row in whole] == texts
    for shard_bytes in (40, 117, 1000, 5000):
        units = plan_units(CorpusConfig(name="x", sources={"w": source}, shard_bytes=shard_bytes))
        parts = [row for unit in units for row in read_unit(unit, source)]
        assert [row.text for row in parts] == texts
        assert [row.position for row in parts] == [row.position for row in whole]
    assert len(units) > 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ranges_without_loss_come_with_their_rows(tmp_path, kind):
    rows = [
        {"text": "question answer", "skip": [[0, 8]]},
        {"text": "plain", "skip": None},
        {"text": "short", "skip": [[0, 99]]},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = SourceConfig(format=kind, paths=[str(path)], no_loss_field="skip")
    found = rows_of(source)
    assert [row.no_loss for row in found] == [((0, 8),), (), ()]
    assert [bool(row.flaw) for row in found] == [False, False, True]


def test_a_file_name_need_not_be_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "w") as file:
        file.write("text")
    assert [text for _, _, text in read(SourceConfig(paths=[str(tmp_path)]))] == ["text"]


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize(
    ("name", "kind", "write", "says"),
    [
        ("a.jsonl.gz", "jsonl", lambda p: (write_gz(p), cut(p, 4)), "cannot be read as jsonl"),
        ("a.jsonl.zst", "jsonl", lambda p: (write_zst(p), cut(p, 4)), "cannot be read as jsonl"),
        ("a.jsonl.zst", "jsonl", lambda p: p.write_text("plain"), "cannot be read as jsonl"),
        ("a.jsonl.bz2", "jsonl", lambda p: p.write_bytes(bz2.compress(LINES[0])[:-9]), "truncated"),
        ("a.jsonl.xz", "jsonl", lambda p: p.write_bytes(lzma.compress(LINES[0])[:-9]), "truncated"),
        ("a.jsonl.gz", "jsonl", lambda p: p.write_bytes(b"\0" * 99), "does not contain gzip data"),
        (
            "a.jsonl.gz",
            "jsonl",
            lambda p: p.write_bytes(gzip.compress(LINES[0], mtime=0) + b"\0\0rest of a tape"),
            "other data follow the gzip data at byte",
        ),
        ("a.parquet", "parquet", lambda p: p.write_text("plain"), "cannot be read as parquet"),
        (
            "a.parquet",
            "parquet",
            lambda p: pq.write_table(pa.table({"x": ["y"], "z": [1]}), p),
            "no column 'body' (columns: x, z). Name another column",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, name, kind, write, says):
    write(tmp_path / name)
    source = SourceConfig(format=kind, paths=[str(tmp_path / name)], text_field="body")
    with pytest.raises(InputError) as error:
        read(source)
    assert str(error.value).startswith(f"corpus.sources.web.paths: {tmp_path / name} ")
    assert says in str(error.value)


def test_an_unreadable_file_is_named(tmp_path):
    gone = SourceFile(str(tmp_path / "gone.txt"), "gone.txt", 1, "1")
    with pytest.raises(
        InputError, match=r"sources\.web\.paths: .*gone\.txt cannot be read as text"
    ):
        list(read_unit(Unit(0, "web", 0, (gone,)), SourceConfig()))


def test_a_missing_or_empty_path_is_refused(tmp_path):
    for pattern in (tmp_path / "missing", tmp_path / "*.jsonl"):
        with pytest.raises(InputError, match=r"corpus\.sources\.web\.paths: .* does not exist"):
            list_files("web", SourceConfig(paths=[str(pattern)]), 0)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"web\.paths: .* no usable files\. .* must end in \.txt"):
        list_files("web", SourceConfig(paths=[str(tmp_path)], suffixes=[".txt"]), 0)


def test_a_missing_dataset_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    missing = SourceConfig(format="huggingface", paths=[str(tmp_path / "missing")])
    with pytest.raises(InputError, match=r"missing cannot be read as huggingface"):
        read(missing)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": {}}, "corpus.sources is empty"),
        ({"held_out_fraction": 1.5}, "corpus.held_out_fraction=1.5"),
        ({"sources": {"a": SourceConfig(paths=[])}}, "corpus.sources.a.paths is empty"),
        (
            {"sources": {"a": SourceConfig(format="josnl", paths=["x"])}},
            "corpus.sources.a.format=josnl: unknown choice (did you mean 'jsonl'?)",
        ),
    ],
)
def test_settings_of_a_corpus_are_checked(change, says):
    with pytest.raises(InputError) as error:
        CorpusConfig(name="x", **{"sources": {"a": SourceConfig(paths=["x"])}, **change})
    assert says in str(error.value)
