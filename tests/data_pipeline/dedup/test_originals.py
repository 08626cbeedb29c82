"""Each duplicate leads to the kept document of its cluster, also after the preparation."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.dedup import matching, minhash, originals
from data_pipeline.dedup.answers import answer
from data_pipeline.dedup.components import sort_links, star_forest
from data_pipeline.dedup.digests import EXACT, NEAR, ROW, rows_path
from data_pipeline.dedup.lookup import Duplicates
from data_pipeline.files import write_array, write_json
from data_pipeline.store.manifest import Manifest, load_manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.units import SourceFile, Unit
from data_pipeline.tokenizing.tokenize import tokenize
from data_pipeline.trace import WhereConfig, where
from tests.data_pipeline.dedup.test_duplicates import edited, text_of, write

PER_UNIT, UNITS = 50, 24


def made_graph(draw: np.random.Generator) -> np.ndarray:
    """Returns edges of a chain over all units, a star, a clique and many small components."""
    documents = draw.permutation(PER_UNIT * UNITS)
    chain, star, clique, rest = np.split(documents, [200, 300, 320])
    edges = [np.stack([chain[1:], chain[:-1]]), np.stack([star[1:], np.repeat(star[0], 99)])]
    edges.append(np.stack(np.meshgrid(clique, clique)).reshape(2, -1))
    edges.append(draw.choice(rest, (2, 300)))
    links = np.concatenate(edges, 1)
    links = np.sort(links[:, links[0] != links[1]], 0)[::-1].astype(np.uint64)
    return (links // PER_UNIT << np.uint64(32)) + links % PER_UNIT


@pytest.mark.parametrize("units_per_range", [1, 3, 24])
def test_duplicates_lead_to_the_first_document_of_their_component(units_per_range, tmp_path):
    """Compares each document of a made graph with one search for all components at once."""
    links = made_graph(np.random.default_rng(units_per_range))
    work, folder = tmp_path / "work", tmp_path / "corpus"
    firsts = [*range(0, UNITS, units_per_range), UNITS]
    plan = matching.DedupPlan(1, 0, 7, 1, firsts, 40)
    for bucket, part in enumerate(np.array_split(links, 7, axis=1)):
        write_array(work / "copies" / f"matches-{NEAR}" / f"{bucket}.npy", sort_links(part))
    # Every tenth duplicate is also an exact copy of the one that it is linked to.
    copied = sort_links(links[:, np.unique(links[0], return_index=True)[1]][:, ::10])
    write_array(work / "copies" / f"matches-{EXACT}" / "0.npy", copied)
    units = []
    for number in range(UNITS):
        file = SourceFile(f"/texts/{number}.jsonl", f"{number}.jsonl", 1, "")
        units.append(Unit(number, "web", number, (file,)))
        rows = np.array([(n + 5, n + 7, 10 * n) for n in range(PER_UNIT)], ROW)
        write_array(rows_path(work, number), rows)
        write_json(work / "scan" / f"{number:06}.json", {"lines": PER_UNIT + 7})
    for stage in (matching.merge_range, originals.resolve_range):
        for number in range(plan.merge_tasks):
            stage(number, plan, work)
        if stage is matching.merge_range:
            matching.settle_ranges(plan, work)
    folder.mkdir()
    corpus = CorpusConfig(name="x", sources={"web": SourceConfig("jsonl", ["/texts"])})
    rows_before = originals.first_rows(units, work)
    assert rows_before == [0] * UNITS
    originals.record_files(corpus, units, rows_before, folder)
    results = []
    for number in range(plan.merge_tasks):
        own = slice(firsts[number], firsts[number + 1])
        found = originals.record_range(number, plan, units[own], rows_before[own], work, folder)
        results.append(found)
    forest = star_forest(links)
    first_of: dict[int, int] = dict(zip(forest[0].tolist(), forest[1].tolist(), strict=True))
    copies = np.unique(forest[1], return_counts=True)
    copies_of = dict(zip(*(column.tolist() for column in copies), strict=True))
    exact: dict[int, int] = dict(zip(*copied.tolist(), strict=True))
    manifest = Manifest(folder, "x", "", {}, "uint16", {}, {})
    duplicates = Duplicates(manifest)
    recorded = {
        (unit << 32) + copy.number: copy
        for tables, unit in duplicates.units()
        for copy in duplicates.copies_in(tables, unit)
    }
    assert set(recorded) == {*first_of, *copies_of}
    for place, (document, copy) in enumerate(recorded.items()):
        first = first_of.get(document, document)
        assert recorded[first].copies == copies_of[first]
        assert copy.row == copy.number + 7
        if place % 60 == 0:
            name = f"{copy.unit}.jsonl"
            assert duplicates.at(folder, copy.unit, copy.number) == copy
            assert duplicates.find(f"{name}:{copy.row}") == [copy]
            assert duplicates.find(f"/texts/{name}#{copy.number * 10}") == [copy]
            assert duplicates.original(copy) == recorded[first]
        kept = document not in first_of
        assert copy.reason == ("" if kept else EXACT if document in exact else NEAR)
        assert copy.copies == copies_of.get(document, 0)
        assert copy.repeats == (folder, *divmod(exact.get(document, first), 1 << 32))
    merged = originals.merged_sizes(results)
    assert merged["dropped"] == len(first_of)
    assert merged["clusters"] == len(copies_of)
    assert sum(size * count for size, count in merged["sizes"]) == len(first_of) + len(copies_of)
    assert [size for size, *_ in merged["largest"]] == sorted(copies[1] + 1)[:-4:-1]


@pytest.fixture(scope="module")
def texts_folder(tmp_path_factory):
    """Four sources with the same documents, the later of which have words replaced."""
    folder = tmp_path_factory.mktemp("duplicates")
    texts = [text_of(seed) for seed in range(40)]
    write(folder / "a.jsonl", [*texts[:20], "", *texts[:3]])
    near = [edited(text, 0.01, seed) for seed, text in enumerate(texts)]
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in (*near[:5], near[4])))
    pq.write_table(pa.table({"body": [*near[5:10], *texts[20:30]]}), folder / "c.parquet")
    (folder / "d" / "deep").mkdir(parents=True)
    for number in range(20, 30):
        (folder / "d" / "deep" / f"{number}.txt").write_text(near[number])
    # Every source needs a document that is kept.
    (folder / "d" / "own.txt").write_text(text_of(99))
    with gzip.open(folder / "b.jsonl.gz", "at") as file:
        file.write("\n\n" + json.dumps({"text": text_of(98)}))
    return folder


@pytest.fixture(scope="module")
def manifest(configure, texts_folder):
    folder = texts_folder
    config = configure(folder, folder / "out", shard_bytes=9000, held_out_fraction=0.0)
    config.corpus.sources = {
        "a": SourceConfig("jsonl", [str(folder / "a.jsonl")]),
        "b": SourceConfig("jsonl", [str(folder / "b.jsonl.gz")]),
        "c": SourceConfig("parquet", [str(folder / "c.parquet")], text_field="body"),
        "d": SourceConfig("text", [str(folder / "d")]),
    }
    config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(minhash=True, task_bytes=4000))
    tokenize(config)
    assert not (folder / "out.partial").exists()
    return load_manifest(folder / "out")


def asked(manifest, doc):
    ((sentence, row),) = answer(Duplicates(manifest), doc)
    return sentence, row


@pytest.mark.parametrize(
    ("doc", "reason", "original"),
    [
        ("a.jsonl:22", EXACT, ("a", "a.jsonl", 1)),
        ("b.jsonl.gz:3", NEAR, ("a", "a.jsonl", 3)),
        ("c.parquet:2", NEAR, ("a", "a.jsonl", 7)),
        ("deep/24.txt", NEAR, ("c", "c.parquet", 9)),
        ("24.txt:0", NEAR, ("c", "c.parquet", 9)),
    ],
)
def test_the_original_is_named_in_every_format(doc, reason, original, manifest, texts_folder):
    whole_path = f"{texts_folder}/d/{doc}" if doc.startswith("deep") else f"{texts_folder}/{doc}"
    for name in {doc, whole_path} - {f"{texts_folder}/24.txt:0"}:
        sentence, row = asked(manifest, name)
        assert (row["state"], row["reason"]) == ("dropped", reason)
        named = (row["original_source"], row["original_file"], row["original_row"])
        assert named == original
        assert "which was kept" in sentence
        assert row["measured"] == "text"
        assert (float(row["similarity"]) == 1) == (reason == EXACT)
        assert 0.8 < float(row["similarity"]) <= 1


def test_an_exact_copy_of_a_near_duplicate_leads_to_the_kept_one(manifest):
    sentence, row = asked(manifest, "b.jsonl.gz:5")
    assert "an exact copy of b.jsonl.gz, row 4 (b), which was dropped as a near" in sentence
    assert (row["original_file"], row["original_row"], row["cluster"]) == ("a.jsonl", 4, 3)
    assert float(row["similarity"]) < 1


def test_kept_documents_count_their_copies(manifest):
    sentence, row = asked(manifest, "a.jsonl:4")
    assert sentence == "a.jsonl, row 4 (a) was kept. 2 copies of it were dropped."
    assert (row["state"], row["copies"], row["cluster"]) == ("kept", 2, 3)
    sentence, row = asked(manifest, "own.txt")
    assert sentence == "own.txt (d) was kept. No copy of it was dropped."
    assert (row["state"], row["copies"], row["cluster"]) == ("kept", 0, 1)
    assert list(answer(Duplicates(manifest), "a.jsonl:20")) == []  # empty


def test_the_report_names_originals_and_sizes(manifest):
    report = json.loads((manifest.folder / "cleaning.json").read_text())
    steps = {step["name"]: step for step in report["sources"]["b"]["steps"]}
    for example in (*steps[EXACT]["examples"], *steps[NEAR]["examples"]):
        _, row = asked(manifest, f"{example['file']}#{example['position']}")
        assert example["original"]["row"] == row["original_row"]
        assert f"{example['similarity']:.4f}" == row["similarity"]
        assert example["cluster"] == row["cluster"]
    dropped = sum(
        step["dropped_documents"]
        for source in report["sources"].values()
        for step in source["steps"]
        if step["name"] in (EXACT, NEAR)
    )
    found = report["duplicates"]
    assert found["dropped"] == dropped == sum((size - 1) * n for size, n in found["sizes"])
    assert found["largest"][0]["documents"] == 3


def test_texts_that_are_gone_or_changed_have_no_similarity(manifest, texts_folder):
    moved, changed = texts_folder / "c.parquet", texts_folder / "a.jsonl"
    before = changed.read_text()
    moved.rename(texts_folder / "moved")
    changed.write_text(before + "\n")
    for doc in ("c.parquet:2", "b.jsonl.gz:3", "24.txt"):
        sentence, row = asked(manifest, doc)
        assert "Their similarity is unknown" in sentence
        assert (row["similarity"], row["measured"]) == ("", "")
        assert row["original_file"]
    (texts_folder / "moved").rename(moved)
    changed.write_text(before)


def test_similarity_is_that_of_the_sets_of_n_grams():
    text, other = "one two three four five six 7", "One, two three four five six 812 nine"
    # {1-5, 2-6, 3-7} and the same with one more.
    assert minhash.similarity(text, other, 5) == pytest.approx(3 / 4)
    assert minhash.similarity("a b", "a b", 5) == 1
    assert minhash.similarity("a b", "a c", 5) == 0


def test_the_command_prints_sentences_and_columns(manifest, tmp_path, capsys):
    where(WhereConfig(data=str(manifest.folder), duplicate="a.jsonl:4"))
    sentence, header, line = capsys.readouterr().out.splitlines()
    assert sentence.startswith("# a.jsonl, row 4 (a) was kept.")
    assert dict(zip(header.split("\t"), line.split("\t"), strict=True))["copies"] == "2"
    (tmp_path / "run").mkdir()
    settings = {"data": {"folder": str(manifest.folder)}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(settings))
    where(WhereConfig(run=str(tmp_path / "run"), duplicate="b.jsonl.gz:3"))
    said = capsys.readouterr().out
    assert said.startswith("# b.jsonl.gz, row 3 (b) was dropped as a near duplicate of a.jsonl")
    where(WhereConfig(data=str(manifest.folder), duplicate="a.jsonl:20"))
    assert "# a.jsonl:20 was not dropped as a duplicate" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"duplicate=x:3: .* was not made from such a file"):
        where(WhereConfig(data=str(manifest.folder), duplicate="x:3"))
    bare = tmp_path / "bare"
    shutil.copytree(manifest.folder, bare, ignore=shutil.ignore_patterns("duplicates"))
    with pytest.raises(InputError, match=r"does not record its duplicates\. Tokenize the corpus"):
        where(WhereConfig(data=str(bare), duplicate="a.jsonl:4"))


def test_originals_of_additions_are_in_earlier_editions(configure, tmp_path):
    """Also through duplicates of earlier editions, and in a corpus that was compared with."""
    texts = [text_of(seed) for seed in range(20)]
    write(tmp_path / "old.jsonl", [*texts, edited(texts[0], 0.02, 1)])
    added = [edited(texts[0], 0.02, 1), texts[3], edited(texts[4], 0.01, 1), text_of(77)]
    write(tmp_path / "new.jsonl", added)
    write(tmp_path / "newer.jsonl", [edited(texts[4], 0.01, 1), text_of(77), text_of(78)])

    def prepare(file, out="out", **options):
        config = configure(tmp_path, tmp_path / out, held_out_fraction=0.0)
        config.corpus.sources = {"web": SourceConfig("jsonl", [str(tmp_path / file)])}
        config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(minhash=True, **options))
        config.add_to = None if (file, out) == ("old.jsonl", "out") or options else config.out
        tokenize(config)
        return load_manifest(tmp_path / out)

    assert asked(prepare("old.jsonl"), "old.jsonl:0")[1]["copies"] == 1
    prepare("new.jsonl")
    manifest = prepare("newer.jsonl")
    assert manifest.edition_count == 3
    expected = {
        "new.jsonl:0": (EXACT, "old.jsonl", 0, 3),
        "new.jsonl:1": (EXACT, "old.jsonl", 3, 2),
        "new.jsonl:2": (NEAR, "old.jsonl", 4, 3),
        "newer.jsonl:0": (EXACT, "old.jsonl", 4, 3),
        "newer.jsonl:1": (EXACT, "new.jsonl", 3, 2),
    }
    for doc, (reason, file, row, cluster) in expected.items():
        found = asked(manifest, doc)[1]
        assert (found["reason"], found["cluster"]) == (reason, cluster), doc
        assert (found["original_file"], found["original_row"]) == (file, row)
        assert found["measured"] == "text"
    assert asked(manifest, "old.jsonl:0")[1]["copies"] == 2
    assert asked(manifest, "newer.jsonl:2")[1]["copies"] == 0
    report = json.loads((manifest.edition_folder(2) / "cleaning.json").read_text())
    example = report["sources"]["web"]["steps"][-1]["examples"][0]
    assert example["original"]["file"] == "old.jsonl"
    assert report["duplicates"]["repeat_earlier"] == 3
    write(tmp_path / "third.jsonl", [texts[3], text_of(55)])
    other = prepare("third.jsonl", "other", against=[str(tmp_path / "out")])
    found = asked(other, "third.jsonl:0")[1]
    assert (found["reason"], found["original_file"]) == (EXACT, "old.jsonl")
    shutil.rmtree(tmp_path / "out" / "duplicates")
    sentence, found = asked(other, "third.jsonl:0")
    assert sentence.endswith(f"a document of {tmp_path}/out, which does not record its documents.")
    assert (found["reason"], found["original_file"], found["copies"]) == (EXACT, "", "")
