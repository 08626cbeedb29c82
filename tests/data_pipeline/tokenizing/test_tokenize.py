"""Text to shards and back: the output, its reproducibility, and refused inputs."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import data_pipeline.tokenizing.tokenize
from conf.errors import InputError
from data_pipeline.store.manifest import load_manifest
from data_pipeline.store.shards import Shard
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.tokenizing.documents import document_names, read_documents
from data_pipeline.tokenizing.tokenize import tokenize

SPLITS = ("train", "held_out")


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def entries_of(manifest):
    return [
        entry
        for sources in manifest.splits.values()
        for shards in sources.values()
        for entry in shards
    ]


def test_documents_come_back_as_they_were(tokenized, texts):
    found = {
        (document.source, document.file): document.text
        for split in SPLITS
        for source in ("code", "prose")
        for document in read_documents(tokenized, split, source)
    }
    expected = {
        (folder, path.name): path.read_text()
        for folder in ("code", "prose")
        for path in (texts / folder).iterdir()
        if path.name not in ("latin.txt", "csv.txt", "copied.txt")
    }
    (kept,) = found.keys() & {("prose", "csv.txt"), ("prose", "copied.txt")}  # one of two copies
    expected[kept] = (texts / "prose" / "csv.txt").read_text()
    assert found == expected
    assert "</s>" in found["prose", "unicode.txt"]
    assert tokenized.sources["prose"]["malformed"] == 1
    assert tokenized.sources["prose"]["exact_duplicates"] == 1
    for split in SPLITS:
        assert set(tokenized.source_tokens(split)) == {"code", "prose"}


def test_shards_are_megatrons_and_the_manifest_counts_them(tokenized, tmp_path):
    entries = entries_of(tokenized)
    assert len(tokenized.shards("train", "code")) > 2
    sizes = tokenized.token_bytes()
    eos = tokenized.tokenizer["eos_id"]
    for entry in entries:
        prefix = tokenized.folder / entry["file"]
        dataset = IndexedDataset(str(prefix))
        documents = [np.array(dataset[number]) for number in range(len(dataset))]
        assert len(documents) == entry["documents"]
        assert sum(map(len, documents)) == entry["tokens"]
        assert sum(int(sizes[document].sum()) for document in documents) == entry["bytes"]
        for document in documents:
            assert document[-1] == eos
            assert eos not in document[:-1]
        assert dataset.document_indices.tolist() == list(range(len(documents) + 1))
        rebuilt = IndexedDatasetBuilder(str(tmp_path / "again.bin"), dtype=np.uint16)
        for document in documents:
            rebuilt.add_document(torch.from_numpy(document.astype(np.int64)), [len(document)])
        rebuilt.finalize(str(tmp_path / "again.idx"))
        for ending in (".bin", ".idx"):
            ours = prefix.with_name(prefix.name + ending).read_bytes()
            assert ours == (tmp_path / f"again{ending}").read_bytes()
        shard = Shard(prefix, tokenized.dtype)
        assert np.array_equal(shard.tokens, np.concatenate(documents))
        assert len(document_names(tokenized, entry["file"])) == len(documents)
        for ending, key in ((".bin", "sha256"), (".idx", "idx_sha256")):
            raw = prefix.with_name(prefix.name + ending).read_bytes()
            assert hashlib.sha256(raw).hexdigest() == entry[key]
    for source, counts in tokenized.sources.items():
        written = [e for split in SPLITS for e in tokenized.shards(split, source)]
        assert sum(e["documents"] for e in written) == counts["documents"]
        assert sum(e["bytes"] for e in written) == counts["bytes"]


def test_no_document_is_in_both_splits(tokenized):
    texts = [
        {document.text for source in ("code", "prose") for document in read_documents(*of, source)}
        for of in ((tokenized, "train"), (tokenized, "held_out"))
    ]
    assert texts[0]
    assert texts[1]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_processes_writes_the_same_bytes(
    workers, tokenized, texts, configure, tmp_path
):
    tokenize(configure(texts, tmp_path / "out", workers=workers))
    assert files_of(tmp_path / "out") == files_of(tokenized.folder)


def test_the_seed_moves_documents(tokenized, texts, configure, tmp_path):
    tokenize(configure(texts, tmp_path / "out", seed=1))
    order = [
        [document.file for document in read_documents(manifest, "train", "code")]
        for manifest in (tokenized, load_manifest(tmp_path / "out"))
    ]
    assert order[0] != order[1]
    assert order[0] != sorted(order[0])


@pytest.fixture
def made(texts, configure, tmp_path, tokenized):
    """A folder that stands for the corpus, made before; and its config."""
    out = tmp_path / "made"
    out.mkdir()
    for name, content in files_of(tokenized.folder).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    return configure(texts, out)


def test_the_same_inputs_are_not_made_again(made, monkeypatch, capsys):
    def forbidden(*arguments):
        raise AssertionError("the text was read again")

    monkeypatch.setattr(data_pipeline.tokenizing.tokenize.Tokenization, "run", forbidden)
    tokenize(made)
    assert "is up to date" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("what", ["settings", "file"])
def test_other_inputs_are_refused_and_made_when_asked(what, made, configure, texts, tmp_path):
    copy = tmp_path / "texts"
    for folder in ("code", "prose"):
        (copy / folder).mkdir(parents=True)
        for path in (texts / folder).iterdir():
            (copy / folder / path.name).write_bytes(path.read_bytes())
    if what == "settings":
        changed = made
        made.tokenizer.vocab_size = 300
    else:
        (copy / "prose" / "new.txt").write_text("A new text of some words.")
        changed = configure(copy, tmp_path / "made")
    before = files_of(tmp_path / "made")
    with pytest.raises(InputError, match=r"made: a corpus from other files or"):
        tokenize(changed)
    assert files_of(tmp_path / "made") == before
    changed.overwrite = True
    tokenize(changed)
    assert load_manifest(tmp_path / "made").inputs != json.loads(before["manifest.json"])["inputs"]


def test_a_damaged_file_is_named_and_nothing_half_written_stays(texts, configure, tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 99)[:-9])
    config = configure(texts, tmp_path / "out")
    rows = SourceConfig("jsonl", [str(tmp_path / "rows.jsonl.gz")])
    config.corpus.sources = {"rows": rows}
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz cannot be read as jsonl"):
        tokenize(config)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl.gz"]


def test_malformed_rows_are_recorded_with_file_and_line(texts, configure, tmp_path):
    lines = [json.dumps({"text": f"row {n}"}) for n in range(300)]
    lines[7] = '{"text": '
    lines[250] = '{"body": "x"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = configure(texts, tmp_path / "out", shard_bytes=1000)
    config.corpus.sources = {"rows": SourceConfig("jsonl", [str(tmp_path / "rows.jsonl")])}
    tokenize(config)
    kept = (tmp_path / "out" / "rejected" / "rows.jsonl").read_text().splitlines()
    assert [(row["file"], row["line"], row["text"]) for row in map(json.loads, kept)] == [
        ("rows.jsonl", 8, lines[7]),
        ("rows.jsonl", 251, lines[250]),
    ]
    assert load_manifest(tmp_path / "out").sources["rows"]["malformed"] == 2


def test_a_foreign_folder_is_not_changed(texts, configure, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"the folder contains thesis\.txt, which is not part"):
        tokenize(configure(texts, tmp_path / "out"))
    with pytest.raises(InputError, match=r"thesis\.txt: this is a file\."):
        tokenize(configure(texts, tmp_path / "out" / "thesis.txt"))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_source_must_have_something_to_train_on(tokenized, texts, configure, tmp_path):
    config = configure(texts, tmp_path / "out")
    config.corpus.sources["prose"].min_letters = 1.0
    with pytest.raises(InputError, match=r"sources\.prose: no document is left .*few_letters"):
        tokenize(config)
    config = configure(texts, tmp_path / "out", held_out_fraction=0.999999)
    with pytest.raises(InputError, match=r"no document is left to train a tokenizer on"):
        tokenize(config)
    config.tokenizer.path = str(tokenized.tokenizer_path)
    with pytest.raises(InputError, match=r"documents are in the held-out split.* is kept in"):
        tokenize(config)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


@pytest.mark.parametrize("dedup", [True, False])
def test_the_reason_why_no_document_is_left_is_reported(configure, texts, tmp_path, dedup):
    (tmp_path / "rows.jsonl").write_text('\n{"text": [7]}\n{"body": "x"}\n')
    source = SourceConfig(format="jsonl", paths=[str(tmp_path / "rows.jsonl")])
    config = configure(texts, tmp_path / "out", sources={"web": source})
    config.corpus.cleaning.dedup.exact = dedup
    expected = (
        r"sources\.web: no document is left \(2 malformed\)\. The first malformed row is "
        if dedup
        else r"no document is left to train a tokenizer on\. The first malformed row is "
    )
    says = rf"{expected}rows\.jsonl, line 2: expected text in 'text', found an array of 1\."
    with pytest.raises(InputError, match=says):
        tokenize(config)


def test_a_source_without_held_out_documents_is_reported(texts, configure, tmp_path, capsys):
    tokenize(configure(texts, tmp_path / "out", held_out_fraction=1e-9))
    said = " ".join(capsys.readouterr().out.split())
    assert "source 'code' has no held-out document" in said
    assert load_manifest(tmp_path / "out").source_tokens("held_out") == {}


def large_vocabulary(path):
    """Saves a byte-level tokenizer whose ids do not fit uint16; those of its bytes come last."""
    pieces = [*(f"filler{number}" for number in range(70_000))]
    pieces += ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(path))


def test_a_loaded_tokenizer_of_a_large_vocabulary(texts, configure, tmp_path):
    large_vocabulary(tmp_path / "large.json")
    config = configure(texts, tmp_path / "out")
    config.tokenizer.path = str(tmp_path / "large.json")
    tokenize(config)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.dtype == "int32"
    assert manifest.vocab_size == 70_259
    manifest.check_tokenizer()
    for source in ("code", "prose"):
        for document in read_documents(manifest, "train", source):
            assert document.text == (texts / source / document.file).read_text()
    for entry in entries_of(manifest):
        dataset = IndexedDataset(str(manifest.folder / entry["file"]))
        assert dataset[0].dtype == np.int32
        assert dataset[0][-1] == 70_002


def test_missing_tokenizers_are_refused(texts, configure, tmp_path):
    config = configure(texts, tmp_path / "out")
    config.tokenizer.path = str(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"tokenizer\.path=.*none\.json: no such file"):
        tokenize(config)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_lacks_a_token_is_refused_before_text_is_read(
    tokenized, texts, configure, tmp_path
):
    config = configure(texts, tmp_path / "out")
    config.tokenizer.path = str(tokenized.tokenizer_path)
    config.tokenizer.pad_token = "<none>"
    with pytest.raises(InputError, match=r"pad_token=<none>: not in the vocabulary of .*json\."):
        tokenize(config)
    config = configure(texts, tmp_path / "out")
    config.tokenizer.vocab_size = 200
    with pytest.raises(InputError, match=r"vocab_size=200: expected 259 or more.*tokens\.$"):
        tokenize(config)
    assert list(tmp_path.iterdir()) == []


def test_the_scan_does_not_depend_on_the_tokenizer(
    tokenized, texts, configure, tmp_path, monkeypatch, capsys
):
    config = configure(texts, tmp_path / "out", held_out_fraction=0.999999)
    config.tokenizer.vocab_size = 300
    with pytest.raises(InputError, match=r"no document is left to train .* is kept in"):
        tokenize(config)

    def refuse(*_):
        raise AssertionError("scanned again")

    monkeypatch.setattr("data_pipeline.dedup.digests.scan_unit", refuse)
    monkeypatch.setattr("data_pipeline.dedup.matching.match_exact", refuse)
    tokenize(configure(texts, tmp_path / "out"))
    assert "training a tokenizer of 400 ids on up to 100 MB of text" in capsys.readouterr().out
    assert files_of(tmp_path / "out") == files_of(tokenized.folder)


def test_tokens_that_a_loaded_tokenizer_adds_are_reported(
    tokenized, texts, configure, tmp_path, capsys
):
    content = json.loads(tokenized.tokenizer_path.read_text())
    content["post_processor"] = json.loads(
        processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)]).__getstate__()
    )
    content["added_tokens"] = content["added_tokens"][:1]
    (tmp_path / "given.json").write_text(json.dumps(content))
    config = configure(texts, tmp_path / "out")
    config.tokenizer.path = str(tmp_path / "given.json")
    tokenize(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "given.json adds <s> to each text. Documents are encoded without" in said
    manifest = load_manifest(tmp_path / "out")
    manifest.check_tokenizer()
    tokenizer = Tokenizer.from_file(str(manifest.tokenizer_path))
    assert tokenizer.num_special_tokens_to_add(False) == 0
    assert entries_of(manifest) == entries_of(tokenized)


def test_a_large_file_of_rows_becomes_shards_of_bounded_text(configure, texts, tmp_path):
    rows = [f"row {number} " + "word " * 20 for number in range(300)]
    packed = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in rows).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    config = configure(texts, tmp_path / "out", shard_bytes=4000)
    config.corpus.sources = {"rows": SourceConfig("jsonl", [str(tmp_path / "rows.jsonl.gz")])}
    tokenize(config)
    manifest = load_manifest(tmp_path / "out")
    shards = manifest.shards("train", "rows")
    assert [e["file"] for e in shards][:2] == ["train/rows-00000", "train/rows-00000-00001"]
    assert len(shards) > 4
    assert all(entry["bytes"] < 4000 + max(map(len, rows)) for entry in shards)
    found = [d for split in SPLITS for d in read_documents(manifest, split, "rows")]
    assert Counter(d.text for d in found) == Counter(rows)
    assert all(rows[document.position] == document.text for document in found)
    assert [d.position for d in found] != sorted(d.position for d in found)


def test_another_tokenizer_in_the_folder_is_refused(made):
    manifest = load_manifest(made.out)
    manifest.check_tokenizer()
    content = json.loads(manifest.tokenizer_path.read_text())
    manifest.tokenizer_path.write_text(json.dumps(content, indent=4))  # spelled otherwise
    manifest.check_tokenizer()
    content["model"]["merges"] = content["model"]["merges"][:-1]
    manifest.tokenizer_path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        manifest.check_tokenizer()
    assert manifest.tokenizer["sha256"][:16] in str(error.value)
    manifest.tokenizer_path.unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        manifest.check_tokenizer()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist. Make the corpus with python -m data_pipeline tokenize"),
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"format": 99}', "has format 99, but"),
        ('{"format": 2, "name": "x"}', "is not a manifest"),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path, content, says):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError) as error:
        load_manifest(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "manifest.json"))
    assert says in str(error.value)


def test_the_fingerprint_of_a_manifest_is_that_of_the_data(made):
    manifest = load_manifest(made.out)
    path = manifest.folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields["sources"] = {}
    path.write_text(json.dumps(fields))
    assert load_manifest(made.out).fingerprint == manifest.fingerprint
    fields["splits"]["train"]["code"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(fields))
    assert load_manifest(made.out).fingerprint != manifest.fingerprint
