"""The ledger names every document that a step held, and no other (I4)."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.batches import BatchReader
from data_pipeline.documents import read_documents
from data_pipeline.ledger import LedgerConfig, documents_of_step, ledger
from data_pipeline.order import OrderStage, SampleOrder
from data_pipeline.tokenizer import load_tokenizer

STAGES = {
    "short": OrderStage(32, 60, {"code": 3, "prose": 1}),
    "long": OrderStage(128, 20, {"code": 1}),
}
LINES = [
    {"step": 1, "stage": "short", "first_sample": 0, "samples": 30, "digest": "x"},
    {"step": 2, "stage": "short", "first_sample": 30, "samples": 30, "digest": "x"},
    {"step": 3, "stage": "long", "first_sample": 0, "samples": 20, "digest": "x"},
]


@pytest.fixture(scope="module")
def order(tokenized):
    return SampleOrder(tokenized.source_tokens("train"), list(STAGES.values()), seed=5)


@pytest.fixture
def run(order, tokenized, tmp_path):
    """A run folder as pretraining leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {
        "data": {"folder": str(tokenized.folder)},
        "recipe": {"stages": dict.fromkeys(STAGES)},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    (folder / "env.json").write_text(json.dumps({"data_fingerprint": tokenized.fingerprint}))
    (folder / "order.json").write_text(order.to_json())
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"step{line['step']}")
def test_the_documents_of_a_step_are_those_of_its_samples(line, run, order, tokenized):
    """Every token of a sample is in its documents, in order: their texts, one after the other,
    hold the sample, and would not without the first or the last."""
    tokenizer = load_tokenizer(tokenized.tokenizer_path)
    eos = tokenized.tokenizer["eos_id"]
    texts = {
        (source, document.file): [*tokenizer.encode(document.text).ids, eos]
        for source in order.sources
        for document in read_documents(tokenized, "train", source)
    }
    rows = documents_of_step(run, line["step"])
    numbers = line["first_sample"] + np.arange(line["samples"])
    batch = BatchReader(tokenized, order).read(list(STAGES).index(line["stage"]), numbers)
    assert sorted({row["sample"] for row in rows}) == numbers.tolist()
    for number, tokens in zip(numbers, batch.tokens.numpy(), strict=True):
        held = [texts[row["source"], row["file"]] for row in rows if row["sample"] == number]
        joined = np.concatenate(held)
        windows = np.lib.stride_tricks.sliding_window_view(joined, len(tokens))
        (places,) = np.nonzero((windows == tokens).all(axis=1))
        ends = places + len(tokens) - len(joined) + len(held[-1])
        assert ((places < len(held[0])) & (ends > 0)).any()
    shards = {entry["file"] for s in order.sources for entry in tokenized.shards("train", s)}
    assert {row["shard"] for row in rows} <= shards


def test_the_command_prints_them(run, capsys):
    ledger(LedgerConfig(run=str(run), step=3))
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = documents_of_step(run, 3)
    assert header == list(rows[0])
    assert lines == [[str(value) for value in row.values()] for row in rows]


def test_shards_without_a_table_of_documents_have_no_files(run, tokenized, order, tmp_path):
    copy = shutil.copytree(tokenized.folder, tmp_path / "copy")
    for table in copy.rglob("*.docs.jsonl"):
        table.unlink()
    settings = {"data": {"folder": str(copy)}, "recipe": {"stages": dict.fromkeys(STAGES)}}
    (run / "config.yaml").write_text(json.dumps(settings))
    rows = documents_of_step(run, 1)
    assert rows
    assert {row["file"] for row in rows} == {""}


def test_data_made_again_is_refused(run):
    (run / "env.json").write_text(json.dumps({"data_fingerprint": "0" * 64}))
    with pytest.raises(InputError, match=r"trained on data with the fingerprint 000000000000, but"):
        documents_of_step(run, 1)


def test_what_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"has no step 9, its last is 3"):
        documents_of_step(run, 9)
    (run / "order.json").unlink()
    with pytest.raises(InputError, match=r"order\.json does not exist"):
        documents_of_step(run, 1)
    with pytest.raises(InputError, match=r"ledger\.jsonl does not exist: expected run="):
        documents_of_step(tmp_path, 1)
