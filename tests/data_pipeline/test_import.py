"""Shards of Megatron-LM and GPT-NeoX are imported unchanged, or refused by name."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from conf.errors import InputError
from data_pipeline.import_shards.command import import_shards
from data_pipeline.import_shards.config import ImportConfig
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.store.manifest import load_manifest
from data_pipeline.store.verify import VerifyConfig, check_folder
from data_pipeline.tokenizing.documents import document_names, read_documents
from tests.corpora import byte_tokenizer
from tests.data_pipeline.shard_folders import megatron_pair, neox_pair
from tests.runs import arguments, records

EOS = 2
TEXTS = [f"Line {n} of a text of others, {'and more ' * (n % 7)}to its end." for n in range(90)]


def documents(texts=TEXTS, eos=True):
    """Returns documents of two sequences, the last of which ends in EOS."""
    tokenizer = byte_tokenizer()
    found = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        found.append([ids[:9], [*ids[9:], *([EOS] if eos else [])]])
    return found


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    byte_tokenizer().save(str(tmp_path / "other_tokenizer.json"))
    return tmp_path / "other_tokenizer.json"


@pytest.fixture
def adopt(tokenizer, tmp_path):
    """Imports into tmp_path/out and returns the manifest."""

    def adopt(**settings):
        settings = {"tokenizer": str(tokenizer), "eos_token": "</s>", "workers": 1, **settings}
        import_shards(ImportConfig(out=str(tmp_path / "out"), **settings))
        return load_manifest(tmp_path / "out")

    return adopt


@pytest.mark.parametrize("bos", [True, False])
def test_the_tokenizer_adds_what_documents_begin_with(bos, adopt, tokenizer, tmp_path, capsys):
    changed = byte_tokenizer()
    changed.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(changed.to_str())
    content["added_tokens"] = []
    tokenizer.write_text(json.dumps(content))
    made = [[[1, *first] if bos else first, second] for first, second in documents()]
    megatron_pair(tmp_path / "in" / "my_text_document", made)
    manifest = adopt(path=str(tmp_path / "in"), bos_token="<s>")
    manifest.check_tokenizer()
    stored = Tokenizer.from_file(str(manifest.tokenizer_path))
    assert stored.encode("a").ids[:-1] == ([1] if bos else [])
    added = json.loads(stored.to_str())["added_tokens"]
    assert [(token["id"], token["special"]) for token in added] == [(1, True), (2, True)]
    assert ("adds <s> to each text" in " ".join(capsys.readouterr().out.split())) is not bos
    assert manifest.token_bytes()[:3].tolist() == [5, 0, 0]


WRITERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Megatron-LM": (megatron_pair, {}),
    "GPT-NeoX": (neox_pair, {}),
    "GPT-NeoX, int32": (neox_pair, {"code": 4}),
    "Megatron-LM, int32": (megatron_pair, {"dtype": np.int32}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_documents_come_out_as_they_went_in(writer, adopt, tmp_path):
    write, settings = WRITERS[writer]
    write(tmp_path / "in" / "my_text_document", documents(), **settings)
    manifest = adopt(path=str(tmp_path / "in"), source="web")
    assert [d.text for d in read_documents(manifest, "train", "web")] == TEXTS
    (entry,) = manifest.shards("train", "web")
    assert entry["documents"] == len(TEXTS)
    assert entry["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert entry["tokens"] == entry["bytes"] + len(TEXTS)
    assert (manifest.origin, manifest.ends_in_eos) == ("import", True)
    assert manifest.dtype == ("int32" if "int32" in writer else "uint16")
    assert document_names(manifest, entry["file"])[5] == ("my_text_document.bin", 5)
    assert check_folder(manifest, VerifyConfig()).problems == []


def test_megatron_core_opens_what_was_imported(adopt, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    neox_pair(tmp_path / "in" / "a", documents())
    adopt(path=str(tmp_path / "in" / "a"))
    dataset = IndexedDataset(str(tmp_path / "out" / "train" / "text-00000"))
    assert len(dataset) == 2 * len(TEXTS)
    assert dataset[1].tolist() == documents()[0][1]


@pytest.mark.parametrize("link", ["symlink", "hard", "copy"])
def test_tokens_are_not_copied_unless_asked(link, adopt, tmp_path):
    megatron_pair(tmp_path / "in" / "a", documents())
    adopt(path=str(tmp_path / "in"), link=link)
    for ending in (".bin", ".idx"):
        there, here = tmp_path / f"in/a{ending}", tmp_path / f"out/train/text-00000{ending}"
        assert here.read_bytes() == there.read_bytes()
        assert here.is_symlink() == (link == "symlink")
        assert os.path.samefile(here, there) == (link != "copy")


def test_eos_is_found_by_reading(adopt, tmp_path, capsys):
    megatron_pair(tmp_path / "in" / "a", documents(eos=False))
    assert not adopt(path=str(tmp_path / "in")).ends_in_eos
    assert "boundaries will be read from the indices" in " ".join(capsys.readouterr().out.split())
    inside = documents()
    inside[40][0][3] = EOS
    megatron_pair(tmp_path / "in" / "a", inside)
    assert not adopt(path=str(tmp_path / "in"), overwrite=True).ends_in_eos


def test_empty_documents_are_removed_from_the_index(adopt, tmp_path):
    some = documents(TEXTS[:3])
    megatron_pair(tmp_path / "in" / "a", [[], some[0], [], [[], *some[1]], some[2], [], []])
    manifest = adopt(path=str(tmp_path / "in"))
    (entry,) = manifest.shards("train", "text")
    assert entry["documents"] == 3
    assert [d.text for d in read_documents(manifest, "train", "text")] == TEXTS[:3]
    positions = [position for _, position in document_names(manifest, entry["file"])]
    assert positions == [1, 3, 4]
    assert manifest.ends_in_eos
    assert check_folder(manifest, VerifyConfig()).problems == []


def test_sources_and_whole_shards_held_out(adopt, tmp_path, capsys):
    for number in range(5):
        megatron_pair(tmp_path / "web" / f"part_{number}", documents(TEXTS[number::5]))
    megatron_pair(tmp_path / "books_0", documents())
    megatron_pair(tmp_path / "books_1", documents())
    where = {"web": str(tmp_path / "web" / "*.bin"), "books": str(tmp_path / "books_*")}
    manifest = adopt(sources=where, held_out_fraction=0.3)
    counts = {
        split: {source: len(shards) for source, shards in sources.items()}
        for split, sources in manifest.splits.items()
    }
    assert counts == {"train": {"web": 3, "books": 1}, "held_out": {"web": 2, "books": 1}}
    assert "no validation loss" not in capsys.readouterr().out
    again = adopt(sources=where, held_out_fraction=0.3, overwrite=True)
    assert again.splits == manifest.splits
    named = adopt(path=str(tmp_path / "web"), held_out="part_[34]", overwrite=True)
    assert len(named.shards("held_out", "text")) == 2
    held_out = [d.text for d in read_documents(named, "held_out", "text")]
    assert held_out == [*TEXTS[3::5], *TEXTS[4::5]]


def test_processes_make_the_same(adopt, tmp_path, monkeypatch):
    for number in range(3):
        megatron_pair(tmp_path / "in" / f"part_{number}", documents(TEXTS[number::3]))
    alone = adopt(path=str(tmp_path / "in"))
    monkeypatch.setattr("data_pipeline.import_shards.command.PARALLEL_BYTES", 0)
    together = adopt(path=str(tmp_path / "in"), workers=2, overwrite=True)
    assert together.splits == alone.splits


def test_a_source_without_held_out_shards_is_reported(adopt, tmp_path, capsys):
    megatron_pair(tmp_path / "in" / "a", documents())
    adopt(path=str(tmp_path / "in"))
    assert "has no held-out shard" in capsys.readouterr().out


def damage(path: Path, offset: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


def beyond(folder):
    damage(folder / "a.bin", 20, struct.pack("<H", 4000))


def cut_bin(folder):
    (folder / "a.bin").write_bytes((folder / "a.bin").read_bytes()[:-2])


def cut_idx(folder):
    (folder / "a.idx").write_bytes((folder / "a.idx").read_bytes()[:-2])


def no_bin(folder):
    (folder / "a.bin").unlink()


def no_idx(folder):
    (folder / "a.idx").unlink()


def floats(folder):
    neox_pair(folder / "a", documents(), code=6)


def mixed(folder):
    neox_pair(folder / "b", documents(), code=4)


def not_megatron(folder):
    damage(folder / "a.idx", 0, b"TNTIDX")


def pointers(folder):
    damage(folder / "a.idx", 34 + 4 * 2 * len(TEXTS) + 8 * 3, struct.pack("<q", 6))


FAULTS = {
    beyond: "a.bin has the id 4000 at token 10, outside the vocabulary of 259 ids",
    cut_bin: "a.bin has ",
    cut_idx: "a.idx has ",
    no_bin: "a.bin is missing, but a.idx exists",
    no_idx: "a.idx is missing, but a.bin exists",
    floats: "a.idx has floating-point data (type code 6), not token ids",
    mixed: "b.idx has ids of type int32, but a.idx has uint16",
    not_megatron: "a.idx is not a Megatron index of version 1",
    pointers: "a.idx is damaged (sequence 3: starts at byte 6 of .bin",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trained_on_is_refused(fault, adopt, tmp_path):
    megatron_pair(tmp_path / "in" / "a", documents())
    fault(tmp_path / "in")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        adopt(path=str(tmp_path / "in"))
    assert FAULTS[fault] in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


SETTINGS: dict[str, dict[str, Any]] = {
    "link=soft: unknown choice": {"path": "in", "link": "soft"},
    "held_out_fraction=1: expected": {"path": "in", "held_out_fraction": 1.0},
    "Give path=": {},
    "both given": {"path": "in", "held_out": "a", "held_out_fraction": 0.1},
    "no .bin and .idx files were found": {"path": "nowhere"},
    "only whole shards can be held out": {"path": "in", "held_out_fraction": 0.1},
    "matches all 1 shards": {"path": "in", "held_out": "*"},
    "matches no shard of source 'text' (the first one is a)": {"path": "in", "held_out": "b*"},
    "eos_token=<end>: not in the vocabulary": {"path": "in", "eos_token": "<end>"},
    "the folder contains ": {"path": "out/train", "overwrite": True},
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_that_do_not_fit(message, adopt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    megatron_pair(tmp_path / "in" / "a", documents())
    if message == "the folder contains ":
        adopt(path="in", link="copy")
    with pytest.raises(InputError) as error:
        adopt(**SETTINGS[message])
    assert message in str(error.value)


def test_another_folder_is_not_replaced(adopt, tmp_path):
    megatron_pair(tmp_path / "in" / "a", documents())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"the folder contains thesis\.txt"):
        adopt(path=str(tmp_path / "in"))


def test_samples_know_their_documents(adopt, tmp_path):
    """Sequences of a document are one text to the reader: only documents end a label."""
    megatron_pair(tmp_path / "in" / "a", documents())
    manifest = adopt(path=str(tmp_path / "in"))
    order = SampleOrder(manifest.source_tokens("train"), [Stage(64, 8, {"text": 1.0})], 0)
    batch = BatchReader(manifest, order).read(0, range(8))
    no_label = (batch.labels == -100).numpy()
    after_eos = (batch.tokens == EOS).numpy()
    assert no_label.any()
    assert (no_label == after_eos).all()


def test_pretrain_on_imported_shards(command, tokenizer, tmp_path):
    """Validates on held-out shards, and trains without validation if there are none."""
    shards = {name: tmp_path / "in" / name for name in ("code_0", "code_1", "prose_0", "prose_1")}
    for prefix in shards.values():
        megatron_pair(prefix, documents(TEXTS * 8))

    def train(name: str, code: Path, prose: Path, *settings: str) -> Path:
        out = tmp_path / name
        done = command(
            *("data_pipeline", "import", f"sources.code={code}", f"sources.prose={prose}"),
            *(f"tokenizer={tokenizer}", f"out={out}", "eos_token='</s>'", *settings),
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        run = tmp_path / f"run_of_{name}"
        done = command(*arguments(out, run, stop_after=2))
        assert done.returncode == 0, done.stderr
        assert len(records(run)) == 2
        return run

    run = train(
        "validated", tmp_path / "in" / "code_*", tmp_path / "in" / "prose_*", "held_out='*_1'"
    )
    assert list(records(run, "validation")[0]["sources"]) == ["code", "prose"]
    run = train("not_validated", shards["code_0"], shards["prose_0"])
    assert records(run, "validation") == []
