"""Checkpoints under faults, on real processes.

Killed in every phase of a save, damaged, poisoned, no space, no permission to write, a writer that
hangs. Afterwards the same command ends with the weights of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp

from conf.errors import EXIT_CHECKPOINT, EXIT_STORAGE
from pretrain.checkpoints import files, mirror, read
from pretrain.checkpoints.files import CheckpointError
from tests.conftest import ROOT
from tests.faults.writer_faults import FAULT
from tests.patience import limit
from tests.runs import arguments, ledger, records
from tests.s3_server import BUCKET

PHASES = ("staged", "written", "hashed", "agreed", "manifest", "renamed", "latest", "pruned")
QUICK = {
    "validation__every_steps": 0,
    "checkpoint__every_steps": 5,
    "checkpoint__wait_seconds": 600,
}


class Run:
    """A run on two processes, and what a run that nothing happened to ends with."""

    def __init__(self, warm, corpus, folder) -> None:
        self.warm, self.corpus, self.dir = warm, corpus, folder / "run"
        self.checkpoints = self.dir / "checkpoints"

    def start(self, fault="", processes=2, environment=None, faulty=(), **changes):
        """fault: of a writer; faulty: arguments of `tests.faults.faulty`."""
        command = arguments(self.corpus.folder, self.dir, **QUICK | changes)
        if faulty:
            command = ["tests.faults.faulty", *faulty, *command[1:]]
        more = (environment or {}) | ({FAULT: fault} if fault else {})
        return self.warm.run(command, processes, self.dir.parent / "said", **more)

    def steps(self):
        return [files.step_of(path.name) for path in files.checkpoints_in(self.checkpoints)]

    def events(self, name):
        return [record for record in records(self.dir, "event") if record["event"] == name]

    def ends_as(self, whole) -> str:
        """Runs the same command to the end; what it said."""
        ended = self.start()
        assert ended.codes == [0, 0], ended.said
        assert ledger(self.dir) == ledger(whole.dir)
        assert [r["loss"] for r in records(self.dir)] == [r["loss"] for r in records(whole.dir)]
        ours, theirs = (dict(read.weights(r.checkpoints / "step_20")) for r in (self, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not list(self.checkpoints.glob("*.tmp*"))
        return ended.said


@pytest.fixture(scope="module")
def whole(warm, corpus, tmp_path_factory):
    run = Run(warm, corpus, tmp_path_factory.mktemp("whole"))
    assert run.start().codes == [0, 0]
    assert run.steps() == [20, 15]
    return run


@pytest.fixture(scope="module")
def stopped(warm, corpus, tmp_path_factory):
    """A run with checkpoints of steps 5 and 10, to be damaged in a copy."""
    run = Run(warm, corpus, tmp_path_factory.mktemp("stopped"))
    assert run.start(stop_after=10).codes == [0, 0]
    return run


@pytest.fixture
def run(warm, corpus, tmp_path):
    return Run(warm, corpus, tmp_path)


@pytest.fixture
def copy(stopped, run):
    shutil.copytree(stopped.dir, run.dir)
    return run


@pytest.mark.parametrize("phase", ["written", "renamed"])
def test_killed_in_the_first_save(phase, run, whole):
    assert -signal.SIGKILL in run.start(f"kill:{phase}:5").codes
    there = phase == "renamed"
    assert run.steps() == [5] * there
    said = "resuming after step 5" if there else "from fresh weights"
    assert said in run.ends_as(whole)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_phase_of_a_save(phase, run, whole):
    step = 15  # the first that prunes
    ended = run.start(f"kill:{phase}:{step}")
    assert -signal.SIGKILL in ended.codes
    there = PHASES.index(phase) >= PHASES.index("renamed")
    assert (15 in run.steps()) == there
    assert 10 in run.steps()  # the one before is still good
    assert files.verify(run.checkpoints / "step_10") is None
    assert f"resuming after step {15 if there else 10}" in run.ends_as(whole)


@pytest.mark.parametrize("fault", ["die:written:10", "die:manifest:10", "hang:staged:10"])
def test_a_writer_that_dies_or_hangs_costs_one_checkpoint(fault, run, whole):
    ended = run.start(fault, faulty=("late", "all", "1"))
    assert ended.codes == [0, 0], ended.said
    assert "ALARM: the checkpoint of step 10 was not saved" in ended.said
    assert [event["of_step"] for event in run.events("checkpoint_failed")] == [10]
    assert run.steps() == [20, 15]
    assert run.ends_as(whole)


def test_a_file_system_that_hangs_holds_nothing_up(run, whole):
    """The first save hangs until steps after the second one."""
    ended = run.start(faulty=("no_latest", "all", "11"), checkpoint__wait_seconds=0)
    assert EXIT_CHECKPOINT in ended.codes
    assert set(ended.codes) <= {EXIT_CHECKPOINT, -signal.SIGKILL}  # the first to go ends the other
    causes = {event["of_step"]: event["cause"] for event in run.events("checkpoint_failed")}
    assert "the file system did not answer in 1800 s" in causes[5]
    assert "the previous checkpoint is still being written by rank 0" in causes[10]
    assert len(records(run.dir)) == 20
    assert "is finished" in run.ends_as(whole)  # it was durable, though no process could report it


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # no format notices one flipped bit; the manifest does
    path.write_bytes(content)


DAMAGES = {
    "flipped": ("does not match its hash", lambda p: flip(p / "__1_0.distcp")),
    "truncated": ("but its manifest lists", lambda p: os.truncate(p / "__0_0.distcp", 1000)),
    "missing": ("is missing", lambda p: (p / "__1_0.distcp").unlink()),
    "extra": ("is not in the manifest", lambda p: (p / "__2_0.distcp").write_bytes(b"more")),
    "manifest": ("cannot be read", lambda p: flip(p / "manifest.json")),
    "empty manifest": ("cannot be read", lambda p: os.truncate(p / "manifest.json", 0)),
    "no manifest": ("cannot be read", lambda p: (p / "manifest.json").unlink()),
    "poisoned": ("does not match its hash", lambda p: poison(p / ".metadata")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(damage, copy, whole):
    problem, harm = DAMAGES[damage]
    harm(copy.checkpoints / "step_10")
    said = copy.ends_as(whole)
    assert "resuming after step 5" in said
    assert problem in said
    assert (copy.checkpoints / "step_10.corrupt").is_dir()
    assert not PROOF.exists()


def test_where_all_are_damaged_nothing_starts_over(copy):
    before = (copy.dir / "metrics.jsonl").read_bytes()
    for step in (5, 10):
        flip(copy.checkpoints / f"step_{step}" / ".metadata")
    for _ in range(2):  # the same when they are renamed already
        ended = copy.start(processes=1)
        assert ended.codes == [EXIT_CHECKPOINT]
        assert f"error: {copy.checkpoints} has no complete checkpoint" in ended.said
        assert "Remove the folder to start over" in ended.said
    assert (copy.dir / "metrics.jsonl").read_bytes() == before


PROOF = ROOT / "was-run"


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(PROOF),)


def poison(path):
    """Writes a file of the right size, so that only its content is wrong."""
    size, payload = path.stat().st_size, pickle.dumps(Evil())
    path.write_bytes(payload + b"\0" * (size - len(payload)))


def forge(checkpoint):
    """Updates the manifest like an attacker would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest.pop("hash")
    manifest["files"] = {name: files.file_entry(checkpoint / name) for name in manifest["files"]}
    files.write_manifest(checkpoint, manifest)


def test_a_forged_pickle_is_not_run(copy):
    for step in (5, 10):
        poison(copy.checkpoints / f"step_{step}" / ".metadata")
        forge(copy.checkpoints / f"step_{step}")
    ended = copy.start(processes=1)
    assert ended.codes == [EXIT_CHECKPOINT], ended.said
    assert (
        "is not valid checkpoint metadata (it references posix.mkdir), so it was not unpickled"
        in ended.said
    )
    assert not PROOF.exists()


def test_a_forged_value_is_not_run(tmp_path):
    with pytest.warns(UserWarning, match="is disabled"):
        dcp.save({"optimizer": {"lr": Evil()}}, checkpoint_id=tmp_path, no_dist=True)
    state = {"optimizer": {"lr": 0.1}}
    with pytest.raises(
        CheckpointError, match=r"the checkpoint's entry optimizer.lr is not a plain value"
    ):
        read._load_into(state, read.SafeReader(tmp_path), no_dist=True)
    assert not PROOF.exists()


def in_a_mount(options, run, script, **changes):
    """Runs with a separate file system for the checkpoints; output is piped through `script`."""
    run.checkpoints.mkdir(parents=True)
    command = [sys.executable, "-m", *arguments(run.corpus.folder, run.dir, **QUICK | changes)]
    mount = f"mount -t tmpfs -o {options} none {run.checkpoints}"
    keep = f"cp -r {run.checkpoints} {run.dir}/kept"
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", f"{mount}; {script % shlex.join(command)}; {keep}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit(120),
    )


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(run):
    fill = f"dd if=/dev/zero of={run.checkpoints}/other bs=1M count=6 2>/dev/null; "
    make_room = f"""while read -r line; do echo "$line"
        case $line in ALARM*) rm -f {run.checkpoints}/other;; esac; done"""
    changes = {"checkpoint__asynchronous": "false", "checkpoint__keep_last": 1}
    done = in_a_mount("size=7m", run, fill + "%s 2>&1 | " + make_room, **changes)
    assert "ALARM: the checkpoint of step 5 was not saved: rank 0: " in done.stdout, done.stdout
    assert "No space left on device" in done.stdout
    assert run.events("checkpoint_failed")[0]["of_step"] == 5
    assert len(records(run.dir)) == 20
    kept = run.dir / "kept"
    assert files.verify(kept / "step_20") is None
    assert not list(kept.glob("*.tmp*"))


def test_a_disk_that_stays_full_is_said_in_the_end(run):
    done = in_a_mount("size=1m", run, "%s; echo code=$?", stop_after=None)
    assert f"code={EXIT_CHECKPOINT}" in done.stdout
    assert (
        f"error: {run.checkpoints} has no checkpoint of the last step, 20, because saving failed"
        in done.stderr
    )
    assert len(records(run.dir)) == 20


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(run):
    done = in_a_mount("size=1m,ro", run, "%s; echo code=$?")
    assert f"code={EXIT_CHECKPOINT}" in done.stdout
    assert f"{run.checkpoints} is not writable for rank 0 (Read-only" in done.stderr
    assert not (run.dir / "metrics.jsonl").exists()


def test_copies_bring_back_what_is_lost_or_bad(run, whole, s3):
    url = f"s3://{BUCKET}/{run.dir.parent.name}"
    store = s3.environment() | {"HEADWATER_RETRIES": "2"}
    changes = {"checkpoint__copy_to": url, "environment": store}
    assert run.start(stop_after=10, **changes).codes == [0, 0]
    assert mirror.steps(url) == [10, 5]
    assert mirror.verify(url, 10) is None
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    away = run.start(stop_after=10, **changes | {"environment": store | nowhere})
    assert f"Resuming from the checkpoints in {run.checkpoints}" in away.said
    assert "resuming after step 10" in away.said
    flip(run.checkpoints / "step_10" / "__0_0.distcp")
    assert "resuming after step 10" in run.start(**changes).said  # the copy's
    assert mirror.steps(url) == [20, 15]  # what stays here stays there
    shutil.rmtree(run.checkpoints)
    assert "is finished" in run.start(**changes).said
    assert run.ends_as(whole)
    shutil.rmtree(run.checkpoints)
    ended = run.start(**changes | {"environment": store | nowhere})
    assert EXIT_STORAGE in ended.codes  # not a word from the store: nothing starts over
