"""Selection of documents, and their split."""

from __future__ import annotations

from collections import Counter

import pytest

from conf.errors import InputError
from data_pipeline.dedup import digests, matching
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.selection import HELD_OUT, reason_to_drop, split_of
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.encoding import select_documents
from data_pipeline.tokenizing.work import JobShard, Workers, WorkFolder


def select(corpus, tmp_path_factory):
    """Returns (source, file, split) of every kept document, and the counts."""
    units = plan_units(corpus)
    folder = WorkFolder(tmp_path_factory.mktemp("work") / "out", JobShard())
    scans = [(unit.id, digests.scan_unit, (unit, corpus, folder.path)) for unit in units]
    for _ in Workers(1).run(folder, "scan", scans):
        pass
    plan = matching.load_plan(units, folder.path, corpus.cleaning.dedup)
    for task in range(plan.match_tasks):
        matching.match(task, plan, units, folder.path, corpus.cleaning.dedup)
    for task in range(plan.merge_tasks):
        matching.merge_range(task, plan, folder.path)
    kept = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in corpus.sources}
    for unit in units:
        seen, documents = select_documents(unit, corpus, folder.path)
        kept += [(unit.source, text.file, split) for split, text in documents]
        counts[unit.source].update(seen.counts)
    return kept, counts


@pytest.fixture
def folders(tmp_path):
    for source in ("a", "b"):
        (tmp_path / source).mkdir()
        for number in range(40):
            (tmp_path / source / f"{number}.txt").write_text(f"text {number} of {source}")
    return tmp_path


def corpus_of(folders, **settings):
    sources = {name: SourceConfig(paths=[str(folders / name)]) for name in ("a", "b")}
    return CorpusConfig(name="x", sources=sources, **settings)


def test_duplicates_are_dropped_across_sources_and_before_the_split(folders, tmp_path_factory):
    for name in ("copy", "again"):
        (folders / "b" / f"{name}.txt").write_text("text 3 of a")
    kept, counts = select(corpus_of(folders, held_out_fraction=0.5), tmp_path_factory)
    assert len(kept) == 80
    assert counts["b"]["exact_duplicates"] == 2
    assert counts["a"]["exact_duplicates"] == 0
    assert not {"copy.txt", "again.txt"} & {file for _, file, _ in kept}
    assert counts["b"]["documents"] == 40
    assert counts["a"]["bytes"] == sum(len(f"text {n} of a") for n in range(40))


def test_a_document_keeps_its_split_when_others_are_added_or_removed(folders, tmp_path_factory):
    corpus = corpus_of(folders, held_out_fraction=0.3)
    before = {row[:2]: row[2] for row in select(corpus, tmp_path_factory)[0]}
    for number in range(0, 40, 2):
        (folders / "a" / f"{number}.txt").unlink()
        (folders / "a" / f"new{number}.txt").write_text(f"new text {number}")
    after = {row[:2]: row[2] for row in select(corpus, tmp_path_factory)[0]}
    both = before.keys() & after.keys()
    assert len(both) == 60
    assert all(before[key] == after[key] for key in both)


def test_the_held_out_fraction_is_exact_and_keyed():
    names = [f"folder/{number}.txt" for number in range(20_000)]
    splits = []
    for seed in (0, 1):
        corpus = CorpusConfig(
            name="x", seed=seed, held_out_fraction=0.05, sources={"a": SourceConfig(paths=["x"])}
        )
        splits.append([split_of(name, corpus) for name in names])
        # five standard deviations of a fair draw
        assert abs(splits[-1].count(HELD_OUT) - 1000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5
    assert splits[0] != splits[1]


def test_rows_of_a_file_are_split_one_by_one(tmp_path, tmp_path_factory):
    rows = "".join(f'{{"text": "row {number}"}}\n' for number in range(100))
    (tmp_path / "rows.jsonl").write_text(rows)
    source = SourceConfig(format="jsonl", paths=[str(tmp_path / "rows.jsonl")])
    corpus = CorpusConfig(name="x", held_out_fraction=0.5, sources={"a": source})
    splits = [split for _, _, split in select(corpus, tmp_path_factory)[0]]
    assert 20 < splits.count(HELD_OUT) < 80


def test_dropped_rows_are_counted_by_reason(folders, tmp_path_factory):
    (folders / "a" / "latin.txt").write_bytes(b"caf\xe9")
    (folders / "a" / "blank.txt").write_text(" \n\t\n")
    _, counts = select(corpus_of(folders), tmp_path_factory)
    assert counts["a"]["malformed"] == 1
    assert counts["a"]["empty"] == 1
    assert counts["a"]["documents"] == 40


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("words and words\n" + "x" * 20, ""),
        ("words and words\n" + "x" * 21, "long_lines"),
        ("1234567 8901234\n", "few_letters"),
        ("half1234", ""),
        ("", "empty"),
    ],
)
def test_rules(text, reason):
    assert reason_to_drop(text, SourceConfig(max_line_length=20, min_letters=0.5)) == reason


@pytest.mark.parametrize(
    ("size", "reason"),
    [(9, "too_short"), (10, ""), (20, ""), (21, "too_long")],
)
def test_length_is_a_rule(size, reason):
    assert reason_to_drop("x" * size, SourceConfig(min_chars=10, max_chars=20)) == reason


def test_no_document_has_both_lengths():
    source = SourceConfig(paths=["x"], min_chars=10, max_chars=9)
    with pytest.raises(InputError, match=r"sources.a.max_chars=9: expected 0, or at least min_ch"):
        CorpusConfig(name="c", sources={"a": source})


def test_more_malformed_rows_than_allowed_end_it(tmp_path, tmp_path_factory):
    lines = ['{"text": "fine"}', "{", '{"text": 1}', "]"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = SourceConfig(format="jsonl", paths=[str(tmp_path / "rows.jsonl")], max_malformed=3)
    corpus = CorpusConfig(name="x", sources={"a": source}, held_out_fraction=0)
    kept, counts = select(corpus, tmp_path_factory)
    assert len(kept) == 1
    assert counts["a"]["malformed"] == 3
    source.max_malformed = 2
    with pytest.raises(InputError, match=r"max_malformed=2: .*rows\.jsonl, row 2: invalid JSON"):
        select(corpus, tmp_path_factory)
