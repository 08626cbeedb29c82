"""The sample, and plans against what tokenizing then drops, keeps and writes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.sizing import command, rates
from data_pipeline.sizing.config import PlanDataConfig
from data_pipeline.sizing.draw import (
    key_of,
    overlap,
    read_parts,
    shares_of,
    strata_of,
    units_to_read,
)
from data_pipeline.sizing.trial import run_trial
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.tokenize import tokenize
from data_pipeline.tokenizing.work import WorkFolder
from tests.data_pipeline.dedup.test_duplicates import edited, text_of, write


@pytest.fixture
def corpus(configure, tmp_path):
    """Two sources: copies within and across, a page with many copies, near copies, empty rows."""
    draw = random.Random(2)
    originals = [text_of(seed, draw.randrange(40, 300)) for seed in range(400)]
    page = text_of(-1)
    near = [edited(text, 0.02, seed) for seed, text in enumerate(originals[:60])]
    first = [*originals[:250], *originals[:40], *[page] * 30, *[" "] * 12]
    second = [*originals[200:], *near, *[page] * 10]
    for name, texts in (("a", first), ("b", second)):
        draw.shuffle(texts)
        write(tmp_path / f"{name}.jsonl", texts)
    config = configure(tmp_path, tmp_path / "out", shard_bytes=40_000, held_out_fraction=0.1)
    config.corpus.sources = {
        name: SourceConfig("jsonl", [str(tmp_path / f"{name}.jsonl")]) for name in ("a", "b")
    }
    config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(minhash=True))
    return config


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(rates, "DOCUMENTS", 1 << 10)
    monkeypatch.setattr(command, "measure_start", lambda: (2.0, 100 << 20))


def plan_of(config, **keys):
    return command.make_plan(
        PlanDataConfig(config.corpus, config.tokenizer, workers=1, cpus=2, **keys)
    )


def test_copies_are_drawn_together(corpus):
    units = plan_units(corpus.corpus)
    shares = shares_of(corpus.corpus, units, 0.2)
    parts = list(read_parts(units, corpus.corpus, shares, 1))
    again = list(read_parts(units, corpus.corpus, shares, 1))
    assert [p.chosen.tolist() for p in parts] == [p.chosen.tolist() for p in again]
    texts = Counter(json.loads(line)["text"] for unit in units for line in lines_of(unit))
    drawn = Counter(row.text for part in parts for row in part.rows)
    assert all(drawn[text] == texts[text] for text in drawn)
    assert 0.1 < len(drawn) / len(texts) < 0.3
    strata = strata_of(parts, units, shares)
    assert sum(stratum.documents for stratum in strata) == sum(texts.values())
    assert sum(len(stratum.rows) for stratum in strata) == sum(drawn.values())
    many = [stratum for stratum in strata if stratum.documents in (10, 12, 30)]
    assert [s.repeated for s in many] == [pytest.approx(s.documents * 39 / 40, abs=1) for s in many]


def lines_of(unit):
    """The lines of a unit of plain JSON lines."""
    content = Path(unit.files[0].path).read_text()
    position = 0
    for line in content.splitlines(keepends=True):
        if unit.start <= position < unit.end:
            yield line
        position += len(line)


def test_documents_that_overlap_have_one_key_as_often():
    pairs = [(text_of(n), edited(text_of(n), 0.05, n)) for n in range(400)]
    same = np.mean([key_of(a) == key_of(b) for a, b in pairs])
    expected = np.mean([overlap(a, b) for a, b in pairs])
    assert 0.5 < expected < 0.95
    assert same == pytest.approx(expected, abs=0.08)
    assert key_of("") != key_of("a") != key_of("abcdefg") != key_of("abcdefgh")
    assert overlap("abc", "abc") == 1
    assert overlap("abcdefghi", "rstuvwxyz") == 0


def test_keys_are_spread_evenly():
    keys = np.array([key_of(text_of(seed, 50)) for seed in range(2000)], np.uint64)
    counts = np.bincount((keys >> np.uint64(61)).astype(int), minlength=8)
    assert counts.min() > 190


def test_a_sample_that_is_the_whole_is_exact(corpus, quick, monkeypatch):
    monkeypatch.setattr(WorkFolder, "remove", lambda self: None)
    plan = plan_of(corpus, share=1.0)
    tokenize(corpus)
    manifest = load_manifest(corpus.out)
    folder = manifest.folder
    report = json.loads((folder / "cleaning.json").read_text())
    dropped = {
        (source, step["name"]): step["dropped_documents"]
        for source, content in report["sources"].items()
        for step in content["steps"]
    }
    assert sum(dropped.values()) > 150
    assert sum(drop["value"] for drop in plan["drops"]) == pytest.approx(sum(dropped.values()))
    for drop in plan["drops"]:
        assert drop["low"] == drop["value"] == drop["high"]
        if drop["step"] == "rules":
            assert drop["value"] == dropped[drop["source"], "rules"]
    entries = [e for split in manifest.splits.values() for s in split.values() for e in s]
    kept = sum(entry["documents"] for entry in entries)
    assert plan["kept"] == pytest.approx({"low": kept, "value": kept, "high": kept})
    tokens = sum(entry["tokens"] for entry in entries)
    # The tokenizer is trained on slightly different text.
    assert plan["tokens"]["value"] == pytest.approx(tokens, rel=0.02)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert plan["disk"]["corpus"]["value"] == pytest.approx(size, rel=0.1)
    between = [path for path in (folder.parent / "out.partial").rglob("*") if path.is_file()]
    assert plan["disk"]["between_bytes"] == pytest.approx(
        sum(path.stat().st_size for path in between), rel=0.1
    )
    assert plan["disk"]["between_files"] == pytest.approx(len(between), abs=6)
    assert plan["array"]["tasks"] == 1
    assert list(plan["array"]["limits"]) == ["scan", "match", "merge", "prepare", "encode"]


def test_duplicates_are_compared_with_their_originals(corpus, quick, monkeypatch):
    """Also those behind rows that the steps before have dropped."""
    found = []

    def trial(*args):
        result = run_trial(*args)
        found.extend(result.links)
        return result

    monkeypatch.setattr(command, "run_trial", trial)
    plan_of(corpus, share=1.0)
    assert Counter(link.kind for link in found)["exact_duplicates"] > 100
    assert min(link.overlap for link in found) > 0.5


def test_what_comes_is_in_the_intervals(corpus, quick):
    whole = plan_of(corpus, share=1.0)
    exact = {(drop["source"], drop["step"]): drop["value"] for drop in whole["drops"]}
    for keys in ({"share": 0.3}, {"share": 0.1}, {"read_bytes": 300_000}):
        plan = plan_of(corpus, **keys)
        for drop in plan["drops"]:
            truth = exact[drop["source"], drop["step"]]
            assert drop["low"] - 0.5 <= truth <= drop["high"] + 0.5, (keys, drop)
        for key in ("documents", "kept", "tokens"):
            assert plan[key]["low"] <= whole[key]["value"] * 1.01, (keys, key)
            assert plan[key]["high"] >= whole[key]["value"] * 0.99, (keys, key)
        assert (plan["sample"]["read"] < 1) == ("read_bytes" in keys)


def test_all_kinds_of_deduplication_are_planned(corpus, quick):
    dedup = corpus.corpus.cleaning.dedup
    dedup.paragraphs = dedup.url = True
    plan = plan_of(corpus, share=0.5)
    phases = [phase["name"] for phase in plan["phases"]]
    assert phases == [
        *("scan", "match", "merge", "settle", "paragraphs", "count", "collect"),
        *("prepare", "encode"),
    ]
    steps = {drop["step"] for drop in plan["drops"]}
    assert steps >= {"url_duplicates", "exact_duplicates", "near_duplicates"}
    dedup.exact = dedup.minhash = dedup.url = False
    assert plan_of(corpus, share=0.5)["kept"]["value"] > plan["kept"]["value"]


def test_units_are_drawn_over_all_of_every_source(corpus):
    units = plan_units(corpus.corpus)
    chosen = units_to_read(units, sum(unit.bytes for unit in units) // 2)
    assert {unit.source for unit in chosen} == {"a", "b"}
    assert len(units) / 3 < len(chosen) < len(units)
    assert chosen == units_to_read(units, sum(unit.bytes for unit in units) // 2)
    numbers = [unit.number for unit in chosen if unit.source == "a"]
    assert numbers != list(range(len(numbers)))


def test_malformed_rows_beyond_the_limit_are_a_warning(corpus, quick, tmp_path):
    corpus.corpus.sources["a"].max_malformed = 2
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n" * 5)
    (warning,) = plan_of(corpus, share=1.0)["warnings"]
    assert "have 5 malformed rows, which corpus.sources.a.max_malformed=2" in warning


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"share": 0.0}, "share=0.0: expected more than 0"), ({"hours": -1}, "hours=-1: expected")],
)
def test_bad_keys_are_refused(corpus, keys, said):
    with pytest.raises(InputError, match=said):
        plan_of(corpus, **keys)


def test_the_command_prints_and_writes_a_plan(corpus, quick, tmp_path, capsys):
    out = tmp_path / "plan.json"
    config = PlanDataConfig(corpus.corpus, corpus.tokenizer, workers=1, out=str(out))
    command.plan(config)
    said = capsys.readouterr().out
    for part in ("what is dropped", "near_duplicates", "tokens", "1 jobs of 32 cores", "exact"):
        assert part in said, part
    assert json.loads(out.read_text())["corpus"] == "texts"
    with pytest.raises(InputError, match="a plan of a preparation already exists"):
        command.plan(config)
