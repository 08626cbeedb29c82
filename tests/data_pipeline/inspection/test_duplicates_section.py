"""The section of inspect about duplicates: sizes of clusters, and pairs with their differences."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest

from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.dedup.minhash import similarity
from data_pipeline.inspection.config import InspectConfig
from data_pipeline.inspection.differences import CONTEXT, MAX_ROWS, compare
from data_pipeline.inspection.duplicates import read_duplicates
from data_pipeline.inspection.inspect_page import inspect
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.tokenizing.tokenize import tokenize
from tests import browser
from tests.data_pipeline.dedup.test_duplicates import edited, text_of, write
from tests.data_pipeline.inspection.test_inspect import Page

SCRIPT = "</pre><script>alert(1)</script>"
LONG = "a_name_that_cannot_be_broken_" * 6


@pytest.fixture(scope="module")
def manifest(configure, tmp_path_factory):
    """A corpus whose near duplicates have between one word in 300 and one in ten replaced."""
    folder = tmp_path_factory.mktemp("copies")
    originals = [f"{SCRIPT} {LONG} {text_of(seed)}" for seed in range(30)]
    shares = [0.003 + 0.001 * number for number in range(30)]
    near = [edited(text, share, 7) for text, share in zip(originals, shares, strict=True)]
    write(folder / "a.jsonl", originals)
    write(folder / f"{LONG}.jsonl", [*near, *originals[:9], *[originals[9]] * 40, text_of(99)])
    config = configure(folder, folder / "out", shard_bytes=20_000, held_out_fraction=0.1)
    config.corpus.sources = {
        name: SourceConfig("jsonl", [str(folder / file)])
        for name, file in (("a", "a.jsonl"), ("b", f"{LONG}.jsonl"))
    }
    config.corpus.cleaning = CleaningConfig(dedup=DedupOptions(minhash=True))
    tokenize(config)
    return load_manifest(folder / "out")


@pytest.fixture
def page(tmp_path):
    def page(folder, **settings) -> Page:
        out = str(tmp_path / "page.html")
        inspect(InspectConfig(out=out, data=str(folder), overwrite=True, **settings))
        return Page((tmp_path / "page.html").read_text())

    return page


def test_pairs_are_spread_over_the_range_of_similarity(manifest):
    found = read_duplicates(manifest, 4, seed=0)
    assert found is not None
    shown = [pair.similarity or 0.0 for pair in found.pairs]
    assert len(shown) == 4
    assert (shown[0], shown[-1]) == (found.measured[0], found.measured[-1])
    gaps = [after - before for before, after in pairwise(shown)]
    assert max(gaps) < 0.6 * (shown[-1] - shown[0])
    assert read_duplicates(manifest, 4, seed=0) == found
    others = read_duplicates(manifest, 1, seed=1)
    assert others is not None
    assert len(others.pairs) == 1
    assert found.unreadable == 0


def test_similarities_are_those_of_the_texts(manifest):
    texts = [f"{SCRIPT} {LONG} {text_of(seed)}" for seed in range(30)]
    near = [edited(text, 0.003 + 0.001 * number, 7) for number, text in enumerate(texts)]
    exact = {round(similarity(a, b, 5), 9) for a, b in zip(texts, near, strict=True)}
    found = read_duplicates(manifest, 6, seed=0)
    assert found is not None
    assert {round(value, 9) for value in found.measured} <= exact
    assert len(found.measured) > 15


def test_sizes_of_clusters_are_counted(manifest):
    found = read_duplicates(manifest, 2, seed=0)
    assert found is not None
    assert found.dropped == sum(manifest.sources["b"][f"{k}_duplicates"] for k in ("exact", "near"))
    # Ten originals have a near and an exact copy, one of them 40; the others have a near one.
    assert found.sizes[33, 64] == 1
    assert found.sizes[3, 4] == 9
    assert sum(found.sizes.values()) == found.clusters
    assert found.largest[0] == (42, "a.jsonl, row 9 (a)")


def test_the_page_shows_them_escaped(manifest, page, tmp_path):
    found = page(manifest.folder, pairs=3)
    assert "#duplicates" in found.addresses
    raw = (tmp_path / "page.html").read_text()
    assert "<script" not in raw
    assert raw.count('class="panel text pair"') == 3
    assert raw.count("<mark>") >= 6
    assert "words are the same" in found.text
    assert f"dropped: {LONG}.jsonl, row" in found.text
    assert "kept: a.jsonl, row" in found.text
    assert "Clusters by number of documents" in found.text
    assert "33 to 64" in found.text


def test_texts_that_are_gone_are_reported(manifest, page, tmp_path):
    copy = shutil.copytree(manifest.folder, tmp_path / "copy")
    texts = manifest.folder.parent / "a.jsonl"
    texts.rename(tmp_path / "moved")
    try:
        found = page(copy)
    finally:
        (tmp_path / "moved").rename(texts)
    assert "similarity unknown" in found.text
    assert "cannot be read any more" in found.text
    assert "kept: a.jsonl, row" in found.text
    shutil.rmtree(copy / "duplicates")
    assert "#duplicates" not in page(copy).addresses


def test_a_corpus_without_duplicates_says_so(manifest, page, tmp_path):
    copy = shutil.copytree(manifest.folder, tmp_path / "copy")
    report = json.loads((copy / "cleaning.json").read_text())
    report["duplicates"] = {"dropped": 0, "clusters": 0, "sizes": [], "largest": []}
    (copy / "cleaning.json").write_text(json.dumps(report))
    for path in (copy / "duplicates").glob("0*.parquet"):
        path.unlink()
    assert "No document was dropped as a duplicate." in page(copy).text


def texts_of(differences):
    """Returns the words of both sides that are shown, with the numbers of those that are not."""
    sides: tuple[list, list] = ([], [])
    for row in differences.rows:
        for side, spans in zip(sides, (row.left, row.right), strict=True):
            side += [row.same] * bool(row.same)
            side += [word for span in spans for word in span.text.split()]
    return sides


def test_differences_are_marked_and_the_rest_is_shortened():
    words = [f"w{number}" for number in range(400)]
    other = [*words[:50], "new", *words[51:200], *words[205:390], "x", "y", *words[390:]]
    found = compare(" ".join(words), "\n".join(other))
    left, right = texts_of(found)
    assert [row.same for row in found.rows] == [50 - CONTEXT, 200 - 51 - 2 * CONTEXT, 161]
    marked = [
        [span.text.strip() for span in spans if span.is_different]
        for row in found.rows
        for spans in (row.left, row.right)
    ]
    assert marked == [["w50"], ["new"], ["w200 w201 w202 w203 w204"], [], [], ["x\ny"]]
    whole = []
    for side, text in ((left, words), (right, other)):
        at = 0
        for word in side:
            if isinstance(word, int):
                at += word
            else:
                assert text[at] == word
                at += 1
        whole.append(at)
    assert whole == [400 - found.same, 401 - 5 + 1 - found.same]
    assert (found.more, found.not_compared) == (0, 0)


def test_equal_long_and_very_different_texts():
    words = [f"w{number}" for number in range(5000)]
    same = compare(" ".join(words), "  ".join(words))
    assert len(same.rows) == 1
    assert same.not_compared == 3000
    other = [f"v{n}" if n % 5 == 0 else word for n, word in enumerate(words)]
    changed = compare(" ".join(words), " ".join(other))
    assert len(changed.rows) == MAX_ROWS
    assert changed.more > 5
    shown = max(len("".join(s.text for s in row.left).split()) for row in changed.rows)
    assert shown < 130
    nothing = compare(" ".join(words), "other words")
    assert len(texts_of(nothing)[0]) < 100
    assert compare("", "").rows


def test_the_page_can_be_read(manifest, page, tmp_path):
    """No text overlaps other text or exceeds the page."""
    page(manifest.folder)
    with browser.page() as tab:
        for width in (1280, 390):
            tab.open(f"file://{tmp_path / 'page.html'}", width, 900)
            assert tab.js("innerWidth") == width
            assert tab.js("document.documentElement.scrollWidth") == width
            assert tab.js("document.querySelectorAll('mark').length") > 10
            assert tab.js(browser.OVERLAPS) == [], width
