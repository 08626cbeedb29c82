"""Branches in real processes: from a random step, on other ranks, killed, without their trunk."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.trace import RunData
from eval.report.config import ReportConfig
from eval.report.content import page_content
from launch.slurm.manage import as_tree, read_status
from pretrain.checkpoints.read import weights
from pretrain.checks import Job
from pretrain.health.receipts import read
from pretrain.preflight import preflight
from tests.pretrain.branches.trunks import branch, composed, trunk
from tests.runs import ledger, records

FORK = 3
DECAYS = {
    "linear": "{code:1}",
    "cosine": "{code:0.5,prose:0.5}",
    "sqrt": "{prose:1}",
}
"""Mixture of each branch, by the shape of its learning rate."""
CHECKPOINT = 65
"""Exit code if a checkpoint cannot be read."""


@pytest.fixture(scope="module")
def run(command, corpus, tmp_path_factory):
    """A finished run of eight steps on two processes, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("branches") / "trunk"
    mirror = f"file://{folder.parent}/mirror"
    changes = {"checkpoint__copy_to": mirror, "validation__every_steps": FORK}
    done = command(*trunk(corpus.folder, folder, **changes), processes=2)
    assert done.returncode == 0, done.stderr
    return folder


def decay(run: Path, shape: str, run_dir: Path) -> list[str]:
    """The command line of a branch of four steps."""
    words = ["recipe=decay", "recipe.stages.decay.tokens=8192"]
    words += [f"recipe.stages.decay.learning_rate.shape={shape}"]
    return branch(run, FORK, run_dir, *words, f"recipe.stages.decay.mixture={DECAYS[shape]}")


@pytest.fixture(scope="module")
def decays(command, run):
    """Three branches from one step, each killed in its third step and resumed without its trunk."""
    folders = {shape: run.parent / shape for shape in DECAYS}
    for processes, (shape, folder) in enumerate(folders.items(), 1):
        words = decay(run, shape, folder)[1:]
        done = command("tests.faults.faulty", "SIGKILL", "0", "6", *words, processes=processes)
        assert done.returncode
        assert (folder / "checkpoints" / "step_4").is_dir()
    with gone(run), gone(run.parent / "mirror"):
        for shape, folder in folders.items():
            done = command(*decay(run, shape, folder), processes=2 if shape == "cosine" else 1)
            assert done.returncode == 0, done.stderr
            assert "resuming after step" in done.stdout
    return folders


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """Runs a block of code while a folder does not exist."""
    away = folder.rename(folder.with_name(f"{folder.name}_away"))
    try:
        yield
    finally:
        away.rename(folder)


def test_a_branch_without_changes_is_its_trunk_to_the_bit(command, run, tmp_path):
    step = random.randrange(1, 7)
    done = command(*branch(run, step, tmp_path / "same", f"stop_after={step + 1}"), processes=2)
    assert done.returncode == 0, done.stderr
    assert f"branching from step {step} of {run}" in done.stdout
    (ours,) = read(tmp_path / "same" / "receipts.jsonl")
    theirs = read(run / "receipts.jsonl")[step]
    assert {key: ours[key] for key in theirs} == theirs, f"branch from step {step}"
    name = f"checkpoints/step_{step + 1}"
    both = zip(weights(tmp_path / "same" / name), weights(run / name), strict=True)
    for (key, mine), (other, value) in both:
        assert key == other
        assert torch.equal(mine, value), f"{key}, branch from step {step}"
    done = command("pretrain", "receipts", f"a={run}", f"b={tmp_path / 'same'}")
    assert done.returncode == 0, done.stderr
    assert "equal bit by bit: tokens, loss and gradient norm of 1 steps" in done.stdout


def test_the_stream_of_a_branch_on_other_ranks_is_that_of_its_trunk(command, run, tmp_path):
    step = random.randrange(1, 7)
    done = command(*branch(run, step, tmp_path / "other"), processes=3)
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "other") == ledger(run)[step:], f"branch from step {step}"
    events = [record["event"] for record in records(tmp_path / "other", "event")]
    assert "branch" in events
    assert "resume" not in events


def test_branches_start_from_one_step_and_go_their_own_way(decays, run):
    weighed = set()
    for shape, folder in decays.items():
        lines = ledger(folder)
        assert [line["step"] for line in lines] == [4, 5, 6, 7]
        assert {line["stage"] for line in lines} == {"decay"}
        start = records(run)[FORK - 1]["learning_rate"]
        falls = [record["learning_rate"] / start for record in records(folder)]
        expected = {"linear": 0.5, "cosine": 0.5, "sqrt": 1 - 0.5**0.5}[shape]
        assert falls[1] == pytest.approx(expected, abs=1e-6)
        assert falls[3] == pytest.approx(0, abs=1e-9)
        order = SampleOrder.from_json((folder / "order.json").read_text())
        assert records(folder)[-1]["consumed_tokens"] == order.consumed(1, 128)
        weighed.add(read(folder / "receipts.jsonl")[-1]["weights"])
    assert len(weighed) == 3


def test_the_validations_of_a_branch_begin_with_that_of_its_trunk_at_the_fork(decays, run):
    (at_fork,) = [one for one in records(run, "validation") if one["step"] == FORK]
    for folder in decays.values():
        first, last = records(folder, "validation")
        assert (first["step"], first["tokens"], last["step"]) == (FORK, at_fork["tokens"], 7)
        assert first["loss"] == pytest.approx(at_fork["loss"], abs=1e-6)


def test_documents_are_traced_through_the_fork(decays, run):
    data = RunData(decays["cosine"])
    first = next(iter(data.documents_of_step(2)))
    assert first == next(iter(RunData(run).documents_of_step(2)))
    for step, row in ((2, first), (6, next(iter(data.documents_of_step(6))))):
        uses = list(data.steps_of_document(f"{row['shard']}:{row['document']}"))
        assert step in [use["step"] for use in uses]
        for use in uses:
            assert use["state"] == "trained"
            assert use["run"] == str(run if use["step"] <= FORK else decays["cosine"])
            assert use["stage"] == ("short" if use["step"] <= FORK else "decay")


def test_report_card_and_status_name_the_parents(command, decays, run, tmp_path):
    page = page_content(ReportConfig(run=str(decays["linear"]), out="page.html"))
    assert page["comparison"]["names"][:2] == ["demo_12m-decay", "trunk"]
    assert {"cosine", "sqrt"} <= set(page["comparison"]["names"])
    assert "trained as a branch of trunk from step 3" in page["summary"]
    parents = [value for label, value in page["lineage"] if label == "parent"]
    assert len(parents) == 1
    assert parents[0].startswith("branch of trunk from step 3 (6,144 tokens, order ")
    assert ("tokens", "8,192") in page["cost"]
    page = page_content(ReportConfig(run=str(run), out="page.html"))
    assert set(decays) <= set(page["comparison"]["names"])
    assert page["comparison"]["charts"][0]
    done = command("pretrain", "export", f"run={decays['linear']}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "branch of trunk from step 3" in (tmp_path / "out" / "README.md").read_text()
    done = command("pretrain", "export", f"run={decays['linear']}", "out=x", "step=0")
    assert done.returncode == 2
    assert "is a branch of" in done.stderr
    runs = sorted([run, *decays.values()])
    assert as_tree(runs)[0] == (run, 0)
    assert {depth for _, depth in as_tree(runs)[1:]} == {1}
    assert read_status(decays["sqrt"]).restarts == 1
    done = command("launch", "status", f"runs={run.parent}", f"data={tmp_path}")
    assert f"└ {decays['cosine']}" in done.stdout


def test_a_branch_describes_the_steps_of_a_trunk_that_is_gone(run, decays):
    with gone(run):
        data = RunData(decays["sqrt"])
        doc = next(iter(data.documents_of_step(2)))  # of the trunk, whose ledger is gone
        assert data.lineage.trainer_of(2) == str(run)
        uses = list(data.steps_of_document(f"{doc['shard']}:{doc['document']}"))
        assert any(use["step"] == 2 and use["state"] == "trained" for use in uses)


def test_a_trunk_that_vanishes_is_read_from_its_mirror_or_named(command, run, decays, tmp_path):
    home = shutil.copytree(run, tmp_path / "trunk")
    saved = home / "checkpoints" / f"step_{FORK}"
    words = decay(home, "cosine", tmp_path / "branch")
    damaged = next(iter(sorted(saved.glob("*.distcp"))))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = command(*words, processes=2)  # the mirror has a good one
    assert done.returncode == 0, done.stderr
    assert damaged.read_bytes() == bytes(content), "a checkpoint of another run was changed"
    assert not (tmp_path / "branch" / "trunk").exists()
    # The branch that had two processes before and after its kill is as if it had not been killed.
    whole = read(tmp_path / "branch" / "receipts.jsonl")
    assert whole == read(decays["cosine"] / "receipts.jsonl")

    shutil.rmtree(saved)
    with gone(run.parent / "mirror" / f"step_{FORK}"):
        done = command(*decay(home, "linear", tmp_path / "late"))
        assert done.returncode == CHECKPOINT
        assert f"has no checkpoint of step {FORK}" in done.stderr
        assert "Give a step that has a checkpoint: 1, 2, 4, 5" in done.stderr
        assert not (tmp_path / "late").exists()
        # It had started, and was killed before its first checkpoint.
        shutil.rmtree(tmp_path / "branch" / "checkpoints")
        done = command(*words, processes=2)
        assert done.stderr.count(f"exitcode  : {CHECKPOINT}") == 2
        assert "the branch has no checkpoint yet and needs that of the trunk" in done.stderr


def other_corpus(corpus: Path, folder: Path, prose: str, notes: str) -> Path:
    """A corpus with two sources, each made of the shards of a source of the first one."""
    shutil.copytree(corpus, folder)
    about = json.loads((folder / "manifest.json").read_text())
    for split, sources in about["splits"].items():
        about["splits"][split] = {"prose": sources[prose], "notes": sources[notes]}
    (folder / "manifest.json").write_text(json.dumps(about))
    return folder


CHANGED = [
    *("precision=bf16", "recipe=decay", "recipe.global_batch_tokens=1024"),
    *("~recipe.stages.decay", "+recipe.stages.again={tokens:4096,mixture:{prose:1,notes:1}}"),
]
"""Changes of a branch: other batches and precision, and a stage of its own."""


def test_a_branch_of_a_branch_changes_corpus_batch_precision_and_layout(
    command, corpus, decays, run, tmp_path
):
    folder = other_corpus(corpus.folder, tmp_path / "corpus", "prose", "code")
    words = branch(decays["cosine"], 5, tmp_path / "second", *CHANGED)
    done = command(*words, f"data.folder={folder}", "stop_after=7")
    assert done.returncode == 0, done.stderr
    done = command(*words, f"data.folder={folder}", "parallel.tp=2", processes=2)
    assert done.returncode == 0, done.stderr
    before, after = records(decays["cosine"])[1], records(tmp_path / "second")[-1]
    assert (before["step"], after["step"], after["batch_tokens"]) == (5, 9, 1024)
    assert after["consumed_tokens"]["code"] == before["consumed_tokens"]["code"]
    assert after["consumed_tokens"]["prose"] > before["consumed_tokens"]["prose"]
    assert after["consumed_tokens"]["notes"] > 0
    env = json.loads((tmp_path / "second" / "env.json").read_text())
    assert [parent["step"] for parent in env["parents"]] == [5, FORK]
    assert os.path.commonpath([p["run"] for p in env["parents"]]) == str(run.parent)
    data = RunData(tmp_path / "second")
    owners = [Path(data.lineage.trainer_of(step)).name for step in (3, 4, 5, 6)]
    assert owners == ["trunk", "cosine", "cosine", "second"]
    assert [line["step"] for line in data.ledger()] == [*range(1, 10)]
    assert {row["source"] for row in data.documents_of_step(8)} == {"prose", "notes"}
    assert {row["source"] for row in data.documents_of_step(2)} <= {"prose", "code"}


def test_what_a_branch_of_a_branch_cannot_continue_is_refused(corpus, decays, tmp_path):
    folder = other_corpus(corpus.folder, tmp_path / "turned", "code", "prose")
    words = branch(decays["cosine"], 5, tmp_path / "second", *CHANGED)
    with pytest.raises(InputError, match="source 'prose' does not begin with the shards that"):
        preflight(composed([*words, f"data.folder={folder}"]), Job(1, "cpu"))
    words = branch(decays["cosine"], 5, tmp_path / "second", "recipe=decay")
    longer = ["recipe.stages.decay.tokens=4096", "recipe.stages.decay.seq_len=32"]
    with pytest.raises(InputError, match=r"decay\.seq_len=32: .* so that it begins after step 5"):
        composed([*words, *longer])
