"""Documents with the URL of an earlier one, over units, sources and tasks."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions, UrlBlocklistOptions
from data_pipeline.cleaning.urls import normalized_url
from data_pipeline.dedup import digests, matching
from data_pipeline.files import write_json
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig, check_urls
from data_pipeline.text.readers import read_unit
from data_pipeline.text.selection import _chain
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.fingerprints import fingerprint_inputs
from data_pipeline.tokenizing.tokenize import tokenize

HOSTS = ("http://a.example/", "https://www.a.example/", "http://b.example/?x=", "//c.example/")


def rows_of(seed, count):
    """Rows whose texts and URLs repeat now and then; some have no URL."""
    draw = random.Random(seed)
    for number in range(count):
        url = f"{draw.choice(HOSTS)}{draw.randrange(count // 3)}"
        text = f"{seed} {draw.randrange(count * 2)} " * 40
        yield {"text": text, "url": draw.choice([url, url, url, None]), "number": number}


@pytest.fixture
def corpus(configure, tmp_path):
    """Two sources in many units, one of JSON lines and one of parquet with nested URLs."""
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(1, 120))
    rows = [*rows_of(1, 60), *rows_of(2, 60)]
    for part in range(4):
        table = pa.Table.from_pylist(
            [
                {"text": row["text"], "metadata": {"url": row["url"]}}
                for row in rows[part * 30 : part * 30 + 30]
            ]
        )
        pq.write_table(table, tmp_path / f"b{part}.parquet")

    def make(out, **dedup):
        config = configure(tmp_path, tmp_path / out, shard_bytes=4000, held_out_fraction=0.2)
        config.corpus.sources = {
            "a": SourceConfig("jsonl", [str(tmp_path / "a.jsonl")], url_field="url"),
            "b": SourceConfig("parquet", [str(tmp_path / "*.parquet")], url_field="metadata.url"),
        }
        config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(**dedup))
        return config

    return make


def kept(config):
    tokenize(config)
    manifest = load_manifest(config.out)
    return manifest, {
        (document.source, document.file, document.position, document.text)
        for source in config.corpus.sources
        for split in ("train", "held_out")
        for document in read_documents(manifest, split, source)
    }


def expected(corpus: CorpusConfig, exact: bool):
    """The documents that a plain program keeps, which holds everything in memory."""
    texts, urls, found = set(), set(), set()
    for unit in plan_units(corpus):
        for row in read_unit(unit, corpus.sources[unit.source]):
            url = normalized_url(row.url)
            if not ((url and url in urls) or (exact and row.text in texts)):
                found.add((unit.source, row.file, row.position, row.text))
            urls.add(url)
            texts.add(row.text)
    return found


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("workers", "task_bytes"), [(1, 2**31), (2, 3000)])
def test_the_first_document_of_a_url_stays(corpus, exact, workers, task_bytes):
    config = corpus("out", url=True, exact=exact, task_bytes=task_bytes)
    config.workers = workers
    assert len(plan_units(config.corpus)) > 8
    manifest, found = kept(config)
    assert found == expected(config.corpus, exact)
    dropped = sum(count["url_duplicates"] for count in manifest.sources.values())
    assert dropped > 60
    assert (sum("exact_duplicates" in count for count in manifest.sources.values()) > 0) == exact
    report = json.loads((manifest.folder / "cleaning.json").read_text())["sources"]
    names = [step["name"] for step in report["a"]["steps"]]
    assert names == ["rules", "url_duplicates"] + ["exact_duplicates"] * exact


def test_sources_can_be_kept_apart(corpus):
    apart, _ = kept(corpus("apart", url=True, exact=False, across_sources=False))
    together, _ = kept(corpus("together", url=True, exact=False))
    assert apart.sources["a"] == together.sources["a"]
    assert apart.sources["b"]["url_duplicates"] < together.sources["b"]["url_duplicates"]


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "x.example", "y/a", "z"]))),
    per_unit=st.integers(1, 40),
)
def test_any_rows_in_any_units(rows, per_unit, tmp_path_factory):
    """Property: what the tasks drop is what a dictionary of URLs and texts drops."""
    folder = tmp_path_factory.mktemp("any")
    for start in range(0, max(1, len(rows)), per_unit):
        lines = [
            json.dumps({"text": f"text {t}", "url": u}) for t, u in rows[start : start + per_unit]
        ]
        (folder / f"{start:04}.jsonl").write_text("\n".join(lines) + "\n")
    corpus = CorpusConfig(
        name="any",
        sources={"s": SourceConfig("jsonl", [str(folder / "*.jsonl")], url_field="url")},
        cleaning=CleaningConfig(dedup=DedupOptions(url=True, task_bytes=400)),
    )
    units, work, options = plan_units(corpus), folder / "work", corpus.cleaning.dedup
    for unit in units:
        result = digests.scan_unit(unit, corpus, work)
        write_json(work / "scan" / f"{unit.id:06}.json", result)
    plan = matching.load_plan(units, work, options)
    for task in range(plan.match_tasks):
        matching.match(task, plan, units, work, options)
    for number in range(plan.merge_tasks):
        matching.merge_range(number, plan, work)
    found = set()
    for unit in units:
        numbers, _ = digests.load_scan(unit, corpus, work)
        dropped = matching.duplicates_in(unit.id, numbers, plan, work)
        found |= {
            (unit.source, row.file, row.position, row.text)
            for number, row in enumerate(read_unit(unit, corpus.sources["s"]))
            if number not in dropped
        }
    assert found == expected(corpus, exact=True)


def documents_with_a_first(config, out, add_to=None):
    sources = config.corpus.sources
    config.corpus.sources = {"b": sources["b"]} if add_to else {"a": sources["a"]}
    config.out, config.add_to = str(out), add_to
    tokenize(config)


def test_added_documents_are_compared_with_the_urls_of_the_corpus(corpus, tmp_path):
    out = tmp_path / "grown"
    documents_with_a_first(corpus("x", url=True), out)
    documents_with_a_first(corpus("x", url=True), out, str(out))
    manifest, found = kept(corpus("whole", url=True))
    grown = load_manifest(out)
    assert found == {
        (document.source, document.file, document.position, document.text)
        for source in ("a", "b")
        for split in ("train", "held_out")
        for document in read_documents(grown, split, source)
    }
    assert grown.sources["b"]["url_duplicates"] == manifest.sources["b"]["url_duplicates"] > 20


def test_an_addition_that_cannot_be_compared_is_refused(corpus, tmp_path):
    out = tmp_path / "grown"
    documents_with_a_first(corpus("x"), out)
    with pytest.raises(InputError, match=r"index was made with url=false, but .* have url=true"):
        documents_with_a_first(corpus("x", url=True), out, str(out))
    with pytest.raises(InputError, match=r"dedup\.paragraphs=true: the paragraphs of .*grown"):
        documents_with_a_first(corpus("x", paragraphs=True), out, str(out))


def test_a_row_without_the_column_is_malformed(corpus, tmp_path):
    config = corpus("out", url=True)
    config.corpus.sources["a"].url_field = "link"
    config.corpus.sources["a"].max_malformed = 3
    with pytest.raises(InputError, match="there is no column 'link'"):
        tokenize(config)


def test_a_changed_blocklist_makes_another_corpus(corpus, tmp_path):
    path = tmp_path / "blocked.txt"
    prints = []
    for content in ("a.example\n", "b.example\n"):
        path.write_text(content)
        config = corpus("out")
        config.corpus.cleaning = CleaningConfig(
            steps=["url_blocklist"], url_blocklist=UrlBlocklistOptions([str(path)])
        )
        prints.append(fingerprint_inputs(config, plan_units(config.corpus)))
        _chain.cache_clear()
    assert prints[0][0] != prints[1][0]
    assert prints[0][1] != prints[1][1]
    _, found = kept(config)
    assert found
    assert not any("b.example" in str(document) for document in found)


def test_settings_that_cannot_work_are_refused():
    def corpus(source, **cleaning):
        check_urls(
            CorpusConfig(name="x", sources={"s": source}, cleaning=CleaningConfig(**cleaning))
        )

    with pytest.raises(InputError, match=r"dedup\.url=true: no source has a column with URLs"):
        corpus(SourceConfig("jsonl", ["x"]), dedup=DedupOptions(url=True))
    with pytest.raises(InputError, match=r"sources\.s\.url_field=null: the step 'url_blocklist'"):
        corpus(SourceConfig("jsonl", ["x"]), steps=["url_blocklist"])
    with pytest.raises(InputError, match=r"url_field=u: format=text has no columns"):
        corpus(SourceConfig("text", ["x"], url_field="u"))
