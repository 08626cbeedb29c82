"""`where` names every document of a step, and every step that saw a document (I4)."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.tokenizer import load_tokenizer
from data_pipeline.trace import RunData, WhereConfig, where

STAGES = {
    "short": Stage(32, 120, {"code": 3, "prose": 1}),
    "long": Stage(128, 45, {"code": 1}),
}
LINES = [
    {"step": 1, "stage": "short", "first_sample": 0, "samples": 60, "digest": "x"},
    {"step": 2, "stage": "short", "first_sample": 60, "samples": 60, "skipped": "loss spike"},
    {"step": 3, "stage": "long", "first_sample": 0, "samples": 15, "digest": "x"},
]
"""Steps of the run so far; two further steps are planned."""
METRICS = [
    {"kind": "event", "event": "start", "step": 0, "dp_size": 4},
    {"kind": "event", "event": "resume", "step": 2, "dp_size": 3},
]


@pytest.fixture(scope="module")
def order(tokenized):
    return SampleOrder(tokenized.source_tokens("train"), list(STAGES.values()), seed=5)


def write_run(folder, manifest, order, data=None):
    """Makes a run folder as pretraining does."""
    folder.mkdir()
    settings = {
        "data": {"folder": str(data or manifest.folder)},
        "recipe": {
            "stages": {
                name: {
                    "seq_len": stage.seq_len,
                    "tokens": stage.samples * stage.seq_len,
                    "mixture": dict(stage.weights),
                }
                for name, stage in STAGES.items()
            },
            "global_batch_tokens": 1920,
        },
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    (folder / "env.json").write_text(json.dumps({"data_fingerprint": manifest.fingerprint}))
    (folder / "order.json").write_text(order.to_json())
    for name, lines in (("ledger", LINES), ("metrics", METRICS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(order, tokenized, tmp_path):
    return write_run(tmp_path / "run", tokenized, order)


def documents_of(run, step, rank=None, chars=0):
    return list(RunData(run).documents_of_step(step, rank, chars))


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"step{line['step']}")
def test_the_documents_of_a_step_are_those_of_its_samples(line, run, order, tokenized):
    """The texts of a sample's rows, concatenated, are the sample, token by token.

    Each is a part of the document that its row names.
    """
    tokenizer = load_tokenizer(tokenized.tokenizer_path)
    eos = tokenizer.decode([tokenized.tokenizer["eos_id"]], skip_special_tokens=False)
    texts = {
        (source, document.file, document.position): document.text + eos
        for source in order.sources
        for document in read_documents(tokenized, "train", source)
    }
    rows = documents_of(run, line["step"])
    numbers = line["first_sample"] + np.arange(line["samples"])
    stage = list(STAGES).index(line["stage"])
    batch = BatchReader(tokenized, order).read(stage, numbers)
    assert sorted({row["sample"] for row in rows}) == numbers.tolist()
    for number, tokens in zip(numbers.tolist(), batch.tokens.tolist(), strict=True):
        mine = [row for row in rows if row["sample"] == number]
        assert sum(row["tokens"] for row in mine) == len(tokens)
        joined = "".join(json.loads(row["text"]) for row in mine)
        assert joined == tokenizer.decode(tokens, skip_special_tokens=False)
        for row in mine:
            part = json.loads(row["text"]).strip("\N{REPLACEMENT CHARACTER}")
            assert part in texts[row["source"], row["file"], row["position"]]
    shards = {entry["file"] for s in order.sources for entry in tokenized.shards("train", s)}
    assert {row["shard"] for row in rows} <= shards


def test_ranks_have_the_shares_that_they_trained_on(run):
    for step, ranks in ((1, 4), (2, 4), (3, 3)):
        whole = documents_of(run, step)
        parts = [documents_of(run, step, rank) for rank in range(ranks)]
        assert [row for part in parts for row in part] == whole
        assert len({len({row["sample"] for row in part}) for part in parts}) == 1
        with pytest.raises(InputError, match=f"step {step} had {ranks} data-parallel ranks"):
            documents_of(run, step, ranks)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="does not record the number of data-parallel ranks"):
        documents_of(run, 1, 0)


def test_a_document_was_seen_by_the_steps_that_hold_it(run, order, tokenized):
    """Compares both directions for every document of the corpus."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for step in (1, 2, 3):
        for row in documents_of(run, step):
            seen[row["shard"], row["document"], step] += row["tokens"]
    states = {1: "trained", 2: "skipped", 3: "trained", 4: "to come", 5: "to come"}
    found: Counter[tuple[str, int, int]] = Counter()
    data, coming = RunData(run), 0
    for source in order.sources:
        for entry in tokenized.shards("train", source):
            for number in range(entry["documents"]):
                for row in data.steps_of_document(f"{entry['file']}:{number}"):
                    assert row["state"] == states[row["step"]]
                    if row["state"] == "to come":
                        coming += row["tokens"]
                    else:
                        found[row["shard"], row["document"], row["step"]] += row["tokens"]
    assert found == seen
    assert coming == 30 * 128


def test_a_document_is_found_by_its_file_and_position(run):
    row = documents_of(run, 1)[0]
    for doc in (
        row["file"],
        row["file"].rpartition("/")[2],
        f"{row['file']}#{row['position']}",
        f"{row['shard']}:{row['document']}",
    ):
        rows = list(RunData(run).steps_of_document(doc))
        assert row["sample"] in {r["sample"] for r in rows if r["step"] == 1}
        assert {r["file"] for r in rows} == {row["file"]}
    with pytest.raises(InputError, match=r"#9999999: no such document in .+\. Give <file>"):
        list(RunData(run).steps_of_document(f"{row['file']}#9999999"))


def test_a_held_out_document_is_reported(run, tokenized):
    (source, entries), *_ = tokenized.splits["held_out"].items()
    name = next(read_documents(tokenized, "held_out", source)).file
    assert entries
    with pytest.raises(
        InputError, match=r"is in the held-out split of .*, which is never trained on"
    ):
        list(RunData(run).steps_of_document(name))


def test_the_command_prints_them(run, capsys):
    where(WhereConfig(run=str(run), step=3, chars=10))
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    rows = documents_of(run, 3, chars=10)
    assert header == list(rows[0])
    assert lines == [[str(value) for value in row.values()] for row in rows]
    assert max(len(json.loads(row["text"])) for row in rows) == 13
    where(WhereConfig(run=str(run), step=2))
    assert capsys.readouterr().out.startswith("# step 2 was skipped: loss spike\nsample\t")
    where(WhereConfig(run=str(run), doc=rows[0]["file"]))
    assert capsys.readouterr().out.startswith("step\tstate\tstage\t")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "Give step=<number>, doc=<document> or duplicate=<document>"),
        ({"step": 1, "doc": "x"}, "expected one of the three"),
        ({"doc": "x", "rank": 0}, "rank=0: selects samples of a step"),
        ({"step": 1, "chars": -1}, "chars=-1: expected 0 or more"),
        ({"step": 1, "duplicate": "x"}, "expected one of the three"),
        ({"duplicate": "x", "data": "y"}, "Give run=<run folder>, or data=<folder of a corpus>"),
        ({"duplicate": "x", "run": None}, "run and data: expected one of the two"),
        ({"step": 1, "run": None, "data": "y"}, "data=y: only a run has steps"),
    ],
)
def test_invalid_questions_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        WhereConfig(**{"run": "run", **settings})


def test_shards_without_a_table_of_documents_have_no_files(run, tokenized, tmp_path):
    copy = shutil.copytree(tokenized.folder, tmp_path / "copy")
    for table in copy.rglob("*.docs.*"):
        table.unlink()
    settings = json.loads((run / "config.yaml").read_text()) | {"data": {"folder": str(copy)}}
    (run / "config.yaml").write_text(json.dumps(settings))
    rows = documents_of(run, 1)
    assert rows
    assert {row["file"] for row in rows} == {""}


def test_data_made_again_is_refused(run):
    (run / "env.json").write_text(json.dumps({"data_fingerprint": "0" * 64}))
    with pytest.raises(InputError, match=r"trained on data with the fingerprint 000000000000, but"):
        documents_of(run, 1)


def test_missing_files_are_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"step=9: not in .*, whose last step is 3"):
        documents_of(run, 9)
    (run / "order.json").unlink()
    with pytest.raises(InputError, match=r"order\.json is missing"):
        documents_of(run, 1)
    with pytest.raises(InputError, match=r"ledger\.jsonl is missing\. Give a run folder"):
        documents_of(tmp_path, 1)
