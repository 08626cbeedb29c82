"""Duplicates, exact and near, over units and sources, from rows to a manifest."""

from __future__ import annotations

import json
import random
from itertools import product

import numpy as np
import pytest

from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.dedup import minhash
from data_pipeline.dedup.components import star_forest
from data_pipeline.dedup.ranges import RANGES
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.fingerprints import fingerprint_inputs
from data_pipeline.tokenizing.tokenize import tokenize

# Letters alone: MinHash sees all numbers as one.
VOCABULARY = ["".join(letters) for letters in product("abdefgiklmno", repeat=3)]


def text_of(seed, words=300):
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def edited(text, share, seed):
    """The text with a share of its words replaced."""
    draw = random.Random(seed)
    parts = text.split()
    for place in draw.sample(range(len(parts)), round(share * len(parts))):
        parts[place] = draw.choice(VOCABULARY)
    return " ".join(parts)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def corpus(configure, tmp_path):
    """Two sources in many units: originals, exact and near duplicates within and across."""
    originals = [text_of(seed) for seed in range(60)]
    exact = originals[:10]
    near = [edited(text, 0.01, seed) for seed, text in enumerate(originals[10:30])]
    far = [edited(text, 0.6, seed) for seed, text in enumerate(originals[30:40])]
    write(tmp_path / "a.jsonl", originals + originals[:5])
    write(tmp_path / "b.jsonl", exact + near + far)

    def make(out, **dedup):
        config = configure(tmp_path, tmp_path / out, shard_bytes=9000, held_out_fraction=0.2)
        config.corpus.sources = {
            name: SourceConfig("jsonl", [str(tmp_path / f"{name}.jsonl")]) for name in ("a", "b")
        }
        config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(**dedup))
        return config

    return make


def kept(config):
    tokenize(config)
    manifest = load_manifest(config.out)
    return manifest, {
        source: [
            document.text
            for split in ("train", "held_out")
            for document in read_documents(manifest, split, source)
        ]
        for source in ("a", "b")
    }


def test_near_duplicates_are_dropped_except_the_first(corpus):
    config = corpus("out", minhash=True)
    assert len(plan_units(config.corpus)) > 8
    manifest, texts = kept(config)
    assert sorted(texts["a"]) == sorted({text_of(seed) for seed in range(60)})
    # With one word in a hundred replaced all are found, with sixty none.
    assert sorted(texts["b"]) == sorted(edited(text_of(30 + seed), 0.6, seed) for seed in range(10))
    assert manifest.sources["a"]["exact_duplicates"] == 5
    assert manifest.sources["b"] == {
        **{"files": 1, "documents": 10, "bytes": sum(map(len, texts["b"]))},
        **{"exact_duplicates": 10, "near_duplicates": 20},
    }
    report = json.loads((manifest.folder / "cleaning.json").read_text())["sources"]["b"]
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["near_duplicates"]["in_documents"] == 30
    assert steps["near_duplicates"]["dropped_documents"] == 20
    assert len(steps["exact_duplicates"]["examples"]) == 3


def test_duplicates_in_other_sources_can_be_kept(corpus):
    _, texts = kept(corpus("out", minhash=True, across_sources=False))
    assert len(texts["a"]) == 60
    assert len(texts["b"]) == 40


def test_minhash_alone_drops_exact_duplicates_and_keeps_one_of_each_cluster(corpus):
    manifest, texts = kept(corpus("out", exact=False, minhash=True))
    assert (len(texts["a"]), len(texts["b"])) == (60, 10)
    assert "exact_duplicates" not in manifest.sources["b"]


def test_without_deduplication_nothing_is_dropped(corpus):
    _, texts = kept(corpus("out", exact=False))
    assert (len(texts["a"]), len(texts["b"])) == (65, 40)


def test_the_result_does_not_depend_on_the_number_of_processes_or_tasks(corpus, tmp_path):
    trees = []
    for workers, task_bytes in ((1, 2**31), (2, 3000)):
        config = corpus(f"out{workers}", minhash=True, task_bytes=task_bytes)
        config.workers = workers
        tokenize(config)
        folder = tmp_path / f"out{workers}"
        trees.append(
            {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )
    assert trees[0] == trees[1]


def test_settings_of_the_cleaning_are_part_of_the_inputs(corpus):
    prints = set()
    for dedup in ({}, {"minhash": True}, {"minhash": True, "n_grams": 7}, {"exact": False}):
        config = corpus("out", **dedup)
        prints.add(fingerprint_inputs(config, plan_units(config.corpus)))
    assert len(prints) == 4


def test_stages_of_minhash_can_be_run_again(tmp_path):
    options = DedupOptions(minhash=True)
    texts = [text_of(seed) for seed in range(5)] + [edited(text_of(0), 0.01, 1), "", "one two"]
    units = [(unit, tmp_path / str(unit)) for unit in range(2)]
    for _ in range(2):
        minhash.write_signatures(texts, units[0][1], options)
        minhash.write_signatures([text_of(3), text_of(9)], units[1][1], options)
        links = [
            minhash.match_keys(bucket, first, first + 64, units, options)
            for bucket in range(options.buckets)
            for first in range(0, RANGES, 64)
        ]
        found = star_forest(np.concatenate(links, 1))
        assert found.T.tolist() == [[5, 0], [1 << 32, 3]]


def test_a_book_needs_no_more_memory_than_a_page(tmp_path):
    import resource

    book = text_of(0, words=400_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    minhash.write_signatures([book], tmp_path / "keys", DedupOptions(minhash=True))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # kB; all n-grams at once would take 360 MB an array
