"""Fill in the middle in a real run: the same samples on any ranks and after a restart (I1, I2)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.trace import RunData
from tests.data_pipeline.sampling.fim_corpus import NAMES, make_fim_corpus
from tests.runs import arguments, ledger, records

SETTINGS = {
    "model__vocab_size": 264,
    "recipe__stages__short__tokens": 8192,
    "recipe__stages__long__tokens": 8192,
    "validation__every_steps": 4,
}
"""Eight steps, four in each stage."""
FIM = ("+recipe.stages.short.fim={code:{share:0.6}}", "+recipe.stages.long.fim={code:{share:0.3}}")


@pytest.fixture(scope="module")
def fim_corpus(tmp_path_factory):
    return make_fim_corpus(tmp_path_factory.mktemp("fim") / "corpus", 60_000)


@pytest.fixture(scope="module")
def whole(command, fim_corpus, tmp_path_factory):
    """A run on two data-parallel ranks."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = command(*arguments(fim_corpus.folder, run_dir, **SETTINGS), *FIM, processes=2)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_other_ranks_and_a_restart_train_on_the_same_samples(command, fim_corpus, whole, tmp_path):
    run_dir = tmp_path / "run"
    first = arguments(fim_corpus.folder, run_dir, stop_after=3, **SETTINGS)
    rest = arguments(fim_corpus.folder, run_dir, parallel__cp=2, **SETTINGS)
    for given, processes in ((first, 0), (rest, 2)):
        done = command(*given, *FIM, processes=processes)
        assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(whole)
    for ours, theirs in zip(records(run_dir), records(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["fim"] == theirs["fim"]
    changed = [FIM[0].replace("0.6", "0.5"), FIM[1]]
    refused = command(*arguments(fim_corpus.folder, run_dir, **SETTINGS), *changed)
    assert refused.returncode == 2
    assert "recipe.stages.short.fim.code={'share': 0.5, 'format': 'mixed'" in refused.stderr
    assert "was trained with {'share': 0.6" in refused.stderr


def test_the_ledger_counts_what_where_prints(whole):
    assert all(line["fim"].keys() == {"code"} for line in ledger(whole))
    run = RunData(whole)
    for line in (ledger(whole)[0], ledger(whole)[-1]):
        rows = list(run.documents_of_step(line["step"]))
        moved = [row for row in rows if row["fim"]]
        counted = line["fim"]["code"]
        assert len(moved) == counted["documents"]
        assert {row["source"] for row in moved} == {"code"}
        assert {row["fim"] for row in moved} == {"psm", "spm"}
        assert sum(row["tokens"] - row["kept"] for row in rows) == counted["dropped"]
        assert counted["tokens"] > counted["dropped"]
        samples = {row["sample"] for row in rows if row["source"] == "code"}
        assert len(samples) <= line["samples"]


def test_validation_reads_the_text_as_it_is(whole, command, fim_corpus, tmp_path):
    """Before the first step, the held-out losses are those of a run without FIM."""
    run_dir = tmp_path / "plain"
    done = command(*arguments(fim_corpus.folder, run_dir, stop_after=1, **SETTINGS))
    assert done.returncode == 0, done.stderr
    ours, theirs = (records(run, "validation")[0]["sources"] for run in (whole, run_dir))
    for source in ours:
        assert ours[source]["loss"] == pytest.approx(theirs[source]["loss"], rel=1e-5)
    [plain] = ledger(run_dir)
    assert "fim" not in plain
    assert plain["digest"] != ledger(whole)[0]["digest"]
    order = json.loads((run_dir / "order.json").read_text())
    assert order["format"] == 1
    assert np.all(["fim" not in stage for stage in order["stages"]])


def test_a_corpus_without_the_tokens_is_refused(command, corpus, tmp_path):
    done = command(*arguments(corpus.folder, tmp_path / "run", **SETTINGS), *FIM)
    assert done.returncode == 2
    assert "recipe.stages.short.fim.code: the tokenizer of the corpus has no special" in done.stderr
    assert NAMES[0] in done.stderr
    assert not (tmp_path / "run").exists()
