"""Tokenizing that is killed, runs out of disk space, or has a concurrent writer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conf.errors import InputError
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.tokenizing.tokenize import tokenize
from data_pipeline.tokenizing.work import JobShard
from tests.patience import limit

pytestmark = pytest.mark.slow

TRIALS = 10
ROOT = Path(__file__).parents[2]
RUN = """
import pickle, sys
from data_pipeline.tokenizing.tokenize import tokenize
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        config = pickle.load(file)
    print("ready", flush=True)
    tokenize(config)
"""


def config_for(out: Path, texts: Path, workers: int = 2) -> TokenizeConfig:
    """Returns a corpus of two sources with duplicates and rules, in about twenty units."""
    sources = {
        "code": SourceConfig(paths=[str(texts)], suffixes=[".py"], min_letters=0.3),
        "rows": SourceConfig("jsonl", [str(texts / "rows.jsonl")], url_field="url"),
    }
    dedup = DedupOptions(exact=True, url=True, minhash=True, paragraphs=True)
    dedup = replace(dedup, paragraph_min_chars=30, paragraph_min_count=3)
    cleaning = CleaningConfig(steps=["pii"], dedup=dedup)
    return TokenizeConfig(
        corpus=CorpusConfig(
            name="faults",
            shard_bytes=60_000,
            held_out_fraction=0.1,
            sources=sources,
            cleaning=cleaning,
        ),
        tokenizer=TokenizerConfig(vocab_size=600),
        out=str(out),
        workers=workers,
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults") / "texts"
    root.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    files = [f for p in ("asyncio", "email", "json") for f in sorted((library / p).glob("*.py"))]
    for file in files:
        shutil.copy(file, root / f"{file.parent.name}_{file.name}")
    rows = ({"text": f.read_text()[:3000], "url": f"http://x.example/{f.name}"} for f in files)
    lines = [*map(json.dumps, rows), "{", *["[]"] * 3]
    (root / "rows.jsonl").write_text("\n".join(lines * 2))
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The files that an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    tokenize(config_for(out, texts))
    return files_of(out)


class Run:
    """Tokenizing in its own process group, started and waiting."""

    def __init__(self, config: TokenizeConfig, folder: Path, **options) -> None:
        (folder / "config.pickle").write_bytes(pickle.dumps(config))
        (folder / "run.py").write_text(RUN)
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "run.py"), str(folder / "config.pickle")],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> int:
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.end()[0]

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=limit(120))
        return self.process.returncode, said


@pytest.mark.timeout(900)
def test_killed_at_random_moments_the_next_run_writes_the_same_bytes(texts, whole, tmp_path):
    run = Run(config_for(tmp_path / "timed" / "out", texts), tmp_path)
    started = time.monotonic()
    code, said = run.end()
    assert code == 0, said
    seconds = time.monotonic() - started
    draw = random.Random(0)
    under_way = trial = 0
    while under_way < TRIALS:
        trial += 1
        assert trial < 5 * TRIALS, f"only {under_way} of {trial} kills found a run under way"
        out = tmp_path / str(trial) / "out"
        config = config_for(out, texts)
        run = Run(config, tmp_path)
        try:  # what is waited for is not an event: the moment itself is drawn
            run.process.wait(draw.uniform(0, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            assert run.kill() in (-signal.SIGKILL, 0)  # it may end by itself just before
        under_way += (out.parent / "out.partial").exists()
        config.workers = 1
        tokenize(config)
        assert files_of(out) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out.parent)


def test_jobs_that_share_the_work_write_the_same_bytes(texts, whole, tmp_path, capsys):
    out = tmp_path / "out"
    calls = 0
    while not out.exists():
        for rank in (2, 0, 1):
            config = config_for(out, texts, workers=1)
            config.rank, config.world = rank, 3
            if not out.exists():
                tokenize(config)
                calls += 1
    assert files_of(out) == whole
    assert calls <= 27  # nine phases
    said = " ".join(capsys.readouterr().out.split())
    assert "rank 2 of 3: scan: this job is done, but" in said
    assert "Run the same command again" in said


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, JobShard(0, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            JobShard(2, 4),
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, JobShard(3, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, JobShard(0, 1)),  # a batch script without srun
    ],
)
def test_the_share_is_what_slurm_says(environment, share, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert JobShard.resolve(None, None) == share
    assert JobShard.resolve(1, 2) == JobShard(1, 2)
    for rank, world in ((2, 2), (None, 2), (-1, 2)):
        with pytest.raises(InputError, match=r"rank=.* world=.*expected"):
            JobShard.resolve(rank, world)


def test_a_second_writer_is_refused(texts, whole, tmp_path):
    out = tmp_path / "out"
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with (partial / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = Run(config_for(out, texts), tmp_path)
        code, said = run.end()
        assert code == 1  # an InputError, outside of the command line that prints it
        assert "out.partial is being written by another process. Wait for that" in said
        assert [path.name for path in partial.iterdir()] == ["lock"]
    tokenize(config_for(out, texts))
    assert files_of(out) == whole


def test_a_second_job_for_the_same_share_is_refused(texts, tmp_path):
    config = config_for(tmp_path / "out", texts)
    config.rank, config.world = 0, 2
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with (partial / "lock-0").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another process"):
            tokenize(config)
    with (partial / "lock").open("a") as held:  # a job for all of it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another process"):
            tokenize(config)


def small_files():
    """Limits the size of files, so that a write fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_fills_up_ends_it_in_a_sentence(texts, whole, tmp_path):
    config = config_for(tmp_path / "out", texts)
    code, said = Run(config, tmp_path, preexec_fn=small_files).end()
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert "out.partial cannot be written" in last
    assert os.strerror(errno.EFBIG) in last
    assert "Free some space and run the same command again" in last
    assert not (tmp_path / "out").exists()
    tokenize(config)
    assert files_of(tmp_path / "out") == whole


def test_a_full_file_system(texts, whole, tmp_path):
    """Uses a real file system of 400 kB, if mounting one is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system here")
    try:
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            tokenize(config_for(folder / "out", texts, workers=1))
        subprocess.run(["mount", "-o", "remount,size=40m", str(folder)], check=True)
        tokenize(config_for(folder / "out", texts, workers=1))
        assert load_manifest(folder / "out")
        assert files_of(folder / "out") == whole
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_other_settings_throw_unfinished_work_away(texts, whole, tmp_path, monkeypatch):
    def fails(*_):
        raise InputError("the last step.")

    config = config_for(tmp_path / "out", texts, workers=1)
    config.corpus.cleaning.dedup.minhash = False
    config.tokenizer.vocab_size = 500
    with monkeypatch.context() as patched:
        patched.setattr("data_pipeline.tokenizing.tokenization.make_manifest", fails)
        with pytest.raises(InputError, match="the last step"):
            tokenize(config)
    assert (tmp_path / "out.partial" / "scan").is_dir()
    tokenize(config_for(tmp_path / "out", texts))
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_the_last_two_steps(overwrite, texts, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    config = config_for(out, texts, workers=1)
    monkeypatch.setattr("data_pipeline.tokenizing.work.WorkFolder.remove", lambda self: None)
    tokenize(config)
    assert (tmp_path / "out.partial").exists()
    monkeypatch.undo()
    config.overwrite = overwrite
    tokenize(config)
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir() if path.name != "texts"] == ["out"]


def test_killed_after_it_replaced_another_corpus(texts, whole, tmp_path, monkeypatch):
    """The replaced corpus is in the work folder, and is not mistaken for the new one."""
    out = tmp_path / "out"
    config = config_for(out, texts, workers=1)
    config.corpus.held_out_fraction = 0.4
    tokenize(config)
    other = files_of(out)
    config = config_for(out, texts)  # new processes, which know nothing of the other tokenizer
    config.overwrite = True
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.tokenizing.work.WorkFolder.remove", lambda self: None)
        tokenize(config)
    assert files_of(out) == whole
    left = tmp_path / "out.partial" / "corpus"
    assert not left.exists() or files_of(left) == other
    tokenize(config)
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_the_way_of_the_work_is_left_alone(texts, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"work would be stored in .*out\.partial, which exists"):
        tokenize(config_for(tmp_path / "out", texts, workers=1))
    assert files_of(tmp_path) == {"out.partial/thesis.txt": b"mine"}
