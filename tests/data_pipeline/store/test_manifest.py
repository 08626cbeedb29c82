"""Tests of the manifest of a corpus, in particular of its editions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from data_pipeline.store.manifest import FILE, Manifest, load_manifest


def manifest(folder: Path, inputs: str, shards: dict[str, dict[str, list[str]]]) -> Manifest:
    splits = {
        split: {name: [entry(file) for file in files] for name, files in sources.items()}
        for split, sources in shards.items()
    }
    names = {name: {"files": 1, "documents": 5, "bytes": 50} for name in shards["train"]}
    tokenizer = {"file": "tokenizer.json", "sha256": "7f", "vocab_size": 300}
    return Manifest(folder, "made", inputs, tokenizer, "uint16", splits, names, True)


def entry(file: str) -> dict[str, Any]:
    return {"file": file, "documents": 5, "tokens": 60, "bytes": 50, "sha256": f"hash of {file}"}


@pytest.fixture
def editions(tmp_path: Path) -> list[Manifest]:
    """A corpus after its first preparation, and after each of two additions."""
    first = manifest(tmp_path, "aa", {"train": {"web": ["a", "b"]}, "held_out": {"web": ["h"]}})
    more = manifest(tmp_path, "bb", {"train": {"web": ["c"], "code": ["d"]}, "held_out": {}})
    last = manifest(tmp_path, "cc", {"train": {"code": ["e"]}, "held_out": {"code": ["i"]}})
    second = first.extended(more)
    return [first, second, second.extended(last)]


def test_each_edition_is_the_corpus_as_it_was(editions: list[Manifest]) -> None:
    newest = editions[-1]
    assert newest.edition_count == 3
    assert newest.edition_inputs == ["aa", "bb", "cc"]
    assert [e["file"] for e in newest.shards("train", "code")] == ["d", "e"]
    assert newest.sources["web"]["documents"] == newest.sources["code"]["documents"] == 10
    for number, was in enumerate(editions, 1):
        found = newest.at_edition(number)
        assert found.fingerprint == was.fingerprint
        assert (found.splits, found.sources, found.inputs) == (was.splits, was.sources, was.inputs)
        assert found.edition_count == number
    assert len({found.fingerprint for found in editions}) == 3


def test_shards_of_an_edition_are_a_prefix_of_those_of_the_next(editions: list[Manifest]) -> None:
    for was, grown in itertools.pairwise(editions):
        for split, sources in was.splits.items():
            for name, shards in sources.items():
                assert grown.shards(split, name)[: len(shards)] == shards


def test_an_edition_is_found_by_its_fingerprint(editions: list[Manifest]) -> None:
    for was in editions:
        found = editions[-1].find_edition(was.fingerprint)
        assert found is not None
        assert found.splits == was.splits
    assert editions[0].find_edition(editions[1].fingerprint) is None


def test_editions_are_stored(editions: list[Manifest], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(editions[-1].to_json())
    assert load_manifest(tmp_path) == editions[-1]


def test_a_corpus_without_additions_has_one_edition(
    editions: list[Manifest], tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(editions[0].to_json())
    assert "editions" not in json.loads((tmp_path / FILE).read_text())
    found = load_manifest(tmp_path)
    assert found.edition_count == 1
    assert found.at_edition(1) == editions[0]
    assert found.edition_inputs == ["aa"]


@pytest.mark.parametrize("number", [0, 4])
def test_an_unknown_edition_is_refused(editions: list[Manifest], number: int) -> None:
    with pytest.raises(InputError, match=f"no edition {number}. Choose one from 1 to 3"):
        editions[-1].at_edition(number)
