"""A corpus grows while a run is in progress (I1 to I3).

The run continues on its edition as if nothing had happened, and a stage that is added to it takes
the larger one without repeating a token.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sampling.order import SampleOrder
from data_pipeline.store.manifest import load_manifest
from data_pipeline.trace import RunData
from tests.corpora import grow_corpus, make_corpus
from tests.runs import arguments, ledger, records

STAGES = {"recipe__stages__short__tokens": 8192, "recipe__stages__long__tokens": 8192}
"""Eight steps."""
QUICK = {"validation__every_steps": 4, "checkpoint__every_steps": 4}
MORE = "+recipe.stages.more={seq_len:128,tokens:24576,edition:latest}"
"""Twelve more steps, on the newest edition."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 16,000 tokens, of which a run reads nearly all."""
    return make_corpus(tmp_path_factory.mktemp("grown") / "corpus", 8_000, 2_000).folder


def texts(first: int) -> dict[str, str]:
    """Text that makes the corpus half as large again, with a new source."""
    text = (Path(sysconfig.get_path("stdlib")) / "decimal.py").read_text()
    text += (Path(sysconfig.get_path("stdlib")) / "tarfile.py").read_text()
    return {"code": text[first:][:5_000], "notes": text[first:][5_000:10_000]}


@pytest.fixture(scope="module")
def runs(command, folder, tmp_path_factory):
    """A run that reads the corpus undisturbed, and one during which the corpus grows.

    Returns their folders, and the output of the second's last start.
    """
    base = tmp_path_factory.mktemp("runs")
    start = {**STAGES, **QUICK}
    done = command(*arguments(folder, base / "whole", **start), processes=2)
    assert done.returncode == 0, done.stderr
    done = command(*arguments(folder, base / "run", stop_after=5, **start), processes=2)
    assert done.returncode == 0, done.stderr
    grow_corpus(load_manifest(folder), texts(0))
    done = command(*arguments(folder, base / "run", **start), processes=2)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stdout
    return base / "whole", base / "run"


@pytest.fixture(scope="module")
def extended(command, folder, runs):
    """The second run after a stage that takes the addition; the corpus grew again in its middle."""
    more = arguments(folder, runs[1], **STAGES, **QUICK)
    done = command(*more, MORE, "stop_after=13", processes=2)
    assert done.returncode == 0, done.stderr
    grow_corpus(load_manifest(folder), texts(20_000))
    done = command(*more, MORE)  # with another number of processes
    assert done.returncode == 0, done.stderr
    return runs[1]


def lines(run: Path, name: str) -> list[str]:
    return (run / name).read_text().splitlines()


def test_a_run_continues_on_its_edition_without_a_difference(runs):
    whole, run = runs
    for name in ("ledger.jsonl", "receipts.jsonl"):
        assert lines(run, name)[:8] == lines(whole, name)[:8]
        assert len(lines(whole, name)) == 8
    validations = [records(folder, "validation") for folder in runs]
    assert [record["sources"] for record in validations[0]] == [
        record["sources"] for record in validations[1]
    ]
    ends = [run / "checkpoints" / "step_8" / "manifest.json" for run in runs]
    ours, theirs = (json.loads(path.read_text()) for path in ends)
    for key in ("order", "plan", "data", "position"):
        assert ours[key] == theirs[key]


def test_a_new_stage_takes_the_addition_and_repeats_nothing(folder, extended, runs):
    assert lines(extended, "ledger.jsonl")[:8] == lines(runs[0], "ledger.jsonl")
    assert [line["step"] for line in ledger(extended)] == list(range(1, 21))
    order = SampleOrder.from_json((extended / "order.json").read_text())
    corpus = load_manifest(folder)
    assert corpus.edition_count == 3
    assert order.source_tokens == corpus.at_edition(1).source_tokens("train")
    assert order.tokens_of(2) == corpus.at_edition(2).source_tokens("train")
    served: Counter[tuple[int, int, int]] = Counter()
    for number, stage in enumerate(order.stages):
        at = order.locate(number, np.arange(stage.samples))
        for source, epoch, start in zip(at.source, at.epoch, at.start, strict=True):
            for unit in range(start // 64, (start + stage.seq_len) // 64):
                served[source, epoch, unit] += 1
    assert max(served.values()) == 1
    first = order.sources.index("code")
    at = order.locate(2, np.arange(order.stages[2].samples))
    epochs = at.epoch[at.source == first]
    # The epoch in which the corpus grew serves the addition too, before the next one starts.
    grown = {unit for source, epoch, unit in served if (source, epoch) == (first, epochs.min())}
    assert grown == set(range((order.tokens_of(2)["code"] - 1) // 128 * 2))
    assert epochs.max() > epochs.min()
    last = records(extended)[-1]
    assert last["consumed_tokens"]["notes"] > 0
    assert last["consumed_tokens"] == order.consumed(2, order.stages[2].samples)
    assert last["consumed_epochs"] == order.epochs_of(2, last["consumed_tokens"])
    assert set(records(extended, "validation")[-1]["sources"]) == {"code", "prose"}


def test_the_edition_of_a_stage_stays_when_the_corpus_grows_again(extended):
    about = json.loads((extended / "checkpoints" / "step_20" / "manifest.json").read_text())
    assert [stage["edition"] for stage in about["editions"]] == [1, 1, 2]
    assert about["editions"][2]["asked"] == "latest"
    assert about["data"] == about["editions"][0]["data"] != about["editions"][2]["data"]
    assert "edition: 2" in (extended / "config.yaml").read_text()


def test_steps_and_documents_are_traced_in_every_edition(extended):
    run = RunData(extended)
    old, new = (next(iter(run.documents_of_step(step))) for step in (2, 15))
    assert min(old["tokens"], new["tokens"]) > 0
    addition = next(row for row in run.documents_of_step(15) if row["source"] == "notes")
    uses = list(run.steps_of_document(f"{addition['shard']}:{addition['document']}"))
    assert any(use["step"] == 15 and use["stage"] == "more" for use in uses)
    assert all(use["stage"] == "more" for use in uses)


def test_a_stage_that_has_started_keeps_its_edition(command, folder, extended):
    again = arguments(folder, extended, **STAGES, **QUICK)
    done = command(*again, MORE, "+recipe.stages.last={seq_len:128,tokens:2048,edition:1}")
    assert done.returncode == 2
    assert "recipe.stages.last.edition=1: the stage before reads edition 2" in done.stderr
    done = command(*again, MORE.replace("latest", "3"))
    assert done.returncode == 2
    assert "recipe.stages.more.edition=3: " in done.stderr
    assert "was trained with edition 2. Restore this value" in done.stderr


def test_a_run_whose_edition_is_gone_is_refused(command, folder, runs, tmp_path):
    made_anew = shutil.copytree(folder, tmp_path / "corpus")
    make_corpus(made_anew, 9_000, 2_000)
    done = command(*arguments(made_anew, runs[1], **STAGES, **QUICK), MORE)
    assert done.returncode == 2
    assert "was trained on other data" in done.stderr
