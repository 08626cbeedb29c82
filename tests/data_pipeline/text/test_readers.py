"""Every format gives the same documents; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from conf.errors import InputError
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


def test_what_cannot_be_used_comes_out_with_its_flaw(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (row,) = rows_of(SourceConfig(paths=[str(tmp_path)]))
    assert (row.text, row.flaw) == ("", "not UTF-8 at byte 2")
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
        (1, "not UTF-8 at byte 10"),
        (2, "no Unicode"),
        (4, "not JSON"),
        (5, "no column 'text' (columns: body)"),
        (6, "'text' is int, expected text"),
        (7, "no column 'text' (columns: none)"),
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
        ("a.parquet", "parquet", lambda p: p.write_text("plain"), "cannot be read as parquet"),
        (
            "a.parquet",
            "parquet",
            lambda p: pq.write_table(pa.table({"x": ["y"], "z": [1]}), p),
            "no column 'body' (columns: x, z); set it on the source",
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


def test_a_path_that_is_missing_or_holds_nothing_is_refused(tmp_path):
    for pattern in (tmp_path / "missing", tmp_path / "*.jsonl"):
        with pytest.raises(InputError, match=r"corpus\.sources\.web\.paths: .* does not exist"):
            list_files("web", SourceConfig(paths=[str(pattern)]), 0)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"sources\.web\.paths: .* holds no file ending in \.txt"):
        list_files("web", SourceConfig(paths=[str(tmp_path)], suffixes=[".txt"]), 0)


def test_a_dataset_that_is_not_there_is_refused(tmp_path, monkeypatch):
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
            "corpus.sources.a.format=josnl is not a format (did you mean 'jsonl'?)",
        ),
    ],
)
def test_settings_of_a_corpus_are_checked(change, says):
    with pytest.raises(InputError) as error:
        CorpusConfig(name="x", **{"sources": {"a": SourceConfig(paths=["x"])}, **change})
    assert says in str(error.value)
