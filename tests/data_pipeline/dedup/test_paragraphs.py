"""Repeated paragraphs, over units, sources and tasks, compared with a plain program."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.dedup import digests, matching, paragraphs
from data_pipeline.dedup.paragraph_tables import long_paragraphs, without
from data_pipeline.files import write_json
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.readers import read_unit
from data_pipeline.text.selection import deduplicated_rows
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.tokenize import tokenize

LENGTH, COUNT = 40, 3


def sentence(seed):
    return " ".join(random.Random(seed).choices(["alpha", "beta", "gamma", "delta"], k=12))


def texts_of(seed, count):
    """Texts with boilerplate, short lines, copies, and documents of boilerplate only."""
    draw = random.Random(seed)
    common = [sentence(f"common {number}") for number in range(12)]
    texts = []
    for number in range(count):
        lines = [sentence(f"{seed} {number} {line}") for line in range(3)]
        if draw.random() < 0.1:
            lines = []
        lines += draw.sample(common, draw.randrange(1, 4))
        lines += ["Home", "", "  "]
        draw.shuffle(lines)
        texts.append("\n".join(lines))
        if draw.random() < 0.2:
            texts.append(draw.choice(texts))
    return texts


@pytest.fixture
def corpus(configure, tmp_path):
    for name in ("a", "b"):
        rows = (json.dumps({"text": text}) + "\n" for text in texts_of(name, 60))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))

    def make(out, **dedup):
        config = configure(tmp_path, tmp_path / out, shard_bytes=3000, held_out_fraction=0.2)
        config.corpus.sources = {
            name: SourceConfig("jsonl", [str(tmp_path / f"{name}.jsonl")]) for name in ("a", "b")
        }
        options = {"paragraph_min_chars": LENGTH, "paragraph_min_count": COUNT, **dedup}
        options = {"paragraphs": True, **options}
        config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(**options))
        return config

    return make


def kept(config):
    tokenize(config)
    manifest = load_manifest(config.out)
    return manifest, {
        (document.source, document.position): document.text
        for source in config.corpus.sources
        for split in ("train", "held_out")
        for document in read_documents(manifest, split, source)
    }


def expected(documents, options, exact=True):
    """Returns what a plain program keeps of (place, text) in the order of the corpus.

    Also returns in how many documents each paragraph is.
    """
    if exact:
        first = {text: place for place, text in reversed(documents)}
        documents = [(place, text) for place, text in documents if first[text] == place]
    holders: dict[str, dict[Any, None]] = {}
    for place, text in documents:
        for _, paragraph in long_paragraphs(text, options):
            holders.setdefault(paragraph, {}).setdefault(place)
    counts = {paragraph: len(places) for paragraph, places in holders.items()}
    found = {}
    for place, text in documents:
        removed = {
            index
            for index, paragraph in long_paragraphs(text, options)
            if counts[paragraph] >= options.paragraph_min_count
            and next(iter(holders[paragraph])) != place
        }
        rest = without(text, removed, options)
        if not removed or any(long_paragraphs(rest, options)):
            found[place] = rest
    return found, counts


def documents_of(corpus):
    return [
        ((unit.source, row.position), row.text)
        for unit in plan_units(corpus)
        for row in read_unit(unit, corpus.sources[unit.source])
        if row.text.strip()
    ]


@pytest.mark.parametrize(("workers", "task_bytes"), [(1, 2**31), (2, 3000)])
@pytest.mark.parametrize("exact", [True, False])
def test_repeated_paragraphs_stay_in_their_first_document(corpus, exact, workers, task_bytes):
    config = corpus("out", exact=exact, task_bytes=task_bytes)
    config.workers = workers
    assert len(plan_units(config.corpus)) > 8
    manifest, found = kept(config)
    documents, counts = expected(documents_of(config.corpus), config.corpus.cleaning.dedup, exact)
    assert found == documents
    report = json.loads((manifest.folder / "cleaning.json").read_text())
    steps = {
        source: next(s for s in content["steps"] if s["name"] == "repeated_paragraphs")
        for source, content in report["sources"].items()
    }
    dropped = sum(step["dropped_documents"] for step in steps.values())
    assert dropped > 3
    assert dropped == sum(count["repeated_paragraphs"] for count in manifest.sources.values())
    assert all(step["changed_documents"] > 20 for step in steps.values())
    assert sum(s["in_documents"] for s in steps.values()) == len(documents) + dropped
    most = report["paragraphs"]["most_frequent"]
    assert [one["rank"] for one in most] == list(range(1, len(most) + 1))
    repeated = {text: count for text, count in counts.items() if count >= COUNT}
    assert all(repeated[one["text"]] == one["documents"] for one in most)
    counted = sorted(repeated.values(), reverse=True)
    assert [one["documents"] for one in most] == counted[: paragraphs.MOST_FREQUENT]
    for one in most:  # where it stays
        assert one["text"] in found[one["source"], one["position"]]
    removed = report["paragraphs"]["removed"]
    assert sum(one["paragraphs"] for one in removed.values()) == sum(
        count - 1 for count in repeated.values()
    )


def test_sources_can_be_kept_apart(corpus):
    config = corpus("out", across_sources=False)
    _, found = kept(config)
    options = config.corpus.cleaning.dedup
    documents: dict[Any, str] = {}
    for name in ("a", "b"):
        own = [one for one in documents_of(config.corpus) if one[0][0] == name]
        documents |= expected(own, options)[0]
    assert found == documents


def test_without_the_option_nothing_changes(corpus):
    config = corpus("out", paragraphs=False)
    manifest, found = kept(config)
    assert set(found.values()) == {text for _, text in documents_of(config.corpus)}
    assert "paragraphs" not in json.loads((manifest.folder / "cleaning.json").read_text())


def test_near_duplicates_are_found_in_the_text_before_paragraphs_are_removed(corpus, tmp_path):
    """Pages that differ in one word stay near duplicates, though most of them is boilerplate."""
    common = [" ".join(random.Random(n).choices("abcdefgh", k=60)) for n in range(5)]
    rows = ["\n".join([*common, f"{word} here and there in this line of text"]) for word in "xyz"]
    with (tmp_path / "b.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in rows)
    manifest, found = kept(corpus("out", minhash=True))
    assert manifest.sources["b"]["near_duplicates"] == 2
    assert [text for (source, _), text in found.items() if source == "b"] == rows[:1]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(["aaaa", "bbbb ", "cccc", "d", "", "\t"]), max_size=6)),
    per_unit=st.integers(1, 9),
    task_bytes=st.integers(400, 9000),
    kind=st.sampled_from(["line", "blank_line"]),
    exact=st.booleans(),
)
def test_any_texts_in_any_units(rows, per_unit, task_bytes, kind, exact, tmp_path_factory):
    """Property: the tasks remove what a dictionary of paragraphs removes."""
    folder = tmp_path_factory.mktemp("any")
    joint = "\n" if kind == "line" else "\n \n\n"
    for start in range(0, max(1, len(rows)), per_unit):
        texts = [joint.join(row) for row in rows[start : start + per_unit]]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts) or "\n"
        (folder / f"{start:04}.jsonl").write_text(lines)
    options = DedupOptions(
        exact=exact,
        paragraphs=True,
        paragraph_break=kind,
        paragraph_min_chars=3,
        paragraph_min_count=2,
        task_bytes=task_bytes,
    )
    corpus = CorpusConfig(
        name="any",
        sources={"s": SourceConfig("jsonl", [str(folder / "*.jsonl")])},
        cleaning=CleaningConfig(dedup=options),
    )
    units, work = plan_units(corpus), folder / "work"
    ids = [unit.id for unit in units]
    for unit in units:
        write_json(work / "scan" / f"{unit.id:06}.json", digests.scan_unit(unit, corpus, work))
    plan = matching.load_plan(units, work, options)
    for task in range(plan.match_tasks):
        matching.match(task, plan, units, work, options)
    for number in range(plan.merge_tasks):
        matching.merge_range(number, plan, work)
    for number in ids:
        paragraphs.filter_unit(number, plan, work)
    tasks = paragraphs.load_plan(ids, work, options)
    tops = [paragraphs.count_range(part, tasks, ids, work, options) for part in range(tasks.parts)]
    for number in range(tasks.collect_tasks):
        paragraphs.collect(number, tasks, tops, work)
    found: dict[Any, str] = {}
    for unit in units:
        numbers, selection = digests.load_scan(unit, corpus, work)
        dropped = matching.duplicates_in(unit.id, numbers, plan, work)
        left = deduplicated_rows(
            unit, corpus, set(numbers.tolist()), dropped, digests.step_names(corpus), selection
        )
        left = paragraphs.without_repeats(left, selection, work, options)
        found |= {(unit.source, row.file, row.position): row.text for _, row in left}
    documents = [
        ((unit.source, row.file, row.position), row.text)
        for unit in units
        for row in read_unit(unit, corpus.sources["s"])
        if row.text.strip()
    ]
    assert found == expected(documents, options, exact)[0]


def test_a_paragraph_is_removed_with_its_break():
    options = DedupOptions(paragraph_min_chars=1)
    assert without("a\nb\nc", {0}, options) == "b\nc"
    assert without("a\nb\nc", {1}, options) == "a\nc"
    assert without("a\nb\nc", {2}, options) == "a\nb"
    assert without("a\nb\nc", {0, 1, 2}, options) == ""
    blank = DedupOptions(paragraph_break="blank_line", paragraph_min_chars=1)
    assert without("a\nb\n\nc\n \n\nd\n", {1}, blank) == "a\nb\n\nd\n"


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(InputError, match=r"dedup\.paragraph_break=page"):
        DedupOptions(paragraph_break="page")
    with pytest.raises(InputError, match=r"dedup\.paragraph_min_count=1: expected 2 or more"):
        DedupOptions(paragraph_min_count=1)
    with pytest.raises(InputError, match=r"no_loss_field=spans: its ranges would not fit"):
        CorpusConfig(
            name="x",
            sources={"s": SourceConfig("jsonl", ["x"], no_loss_field="spans")},
            cleaning=CleaningConfig(dedup=DedupOptions(paragraphs=True)),
        )
    with pytest.raises(InputError, match=r"task_bytes=1000: expected \d+ or more for 90,000,000"):
        paragraphs.make_plan([90_000_000], 1000)
