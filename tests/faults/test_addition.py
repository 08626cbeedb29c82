"""Additions to a corpus that are killed at random moments, or fail for want of disk space."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from data_pipeline.store.manifest import FILE, load_manifest
from data_pipeline.store.verify import VerifyConfig, verify
from data_pipeline.text.corpus import TokenizeConfig
from data_pipeline.tokenizing.tokenize import tokenize
from tests.faults.test_tokenize import Run, config_for, files_of, small_files

pytestmark = pytest.mark.slow

TRIALS = 6


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The modules of one package and, to be added, those of two, of which one repeats it."""
    root = tmp_path_factory.mktemp("faults")
    library = Path(sysconfig.get_path("stdlib"))
    for folder, packages in (("old", ["email"]), ("new", ["email", "asyncio"])):
        (root / folder).mkdir()
        files = [f for package in packages for f in sorted((library / package).glob("*.py"))]
        for file in files:
            shutil.copy(file, root / folder / f"{file.parent.name}_{file.name}")
        lines = [
            json.dumps({"text": f.read_text()[200:3000], "url": f"https://{folder}.org/{n}"})
            for n, f in enumerate(files)
        ]
        (root / folder / "rows.jsonl").write_text("\n".join(lines * 2))
    return root


@pytest.fixture(scope="module")
def old(texts, tmp_path_factory):
    """The corpus before the addition."""
    out = tmp_path_factory.mktemp("old") / "out"
    tokenize(config_for(out, texts / "old"))
    return out


def addition_to(out: Path, texts: Path, workers: int = 2) -> TokenizeConfig:
    config = config_for(out, texts / "new", workers)
    config.corpus.sources["more"] = config.corpus.sources.pop("rows")
    config.corpus.cleaning.dedup.paragraphs = False
    config.add_to = str(out)
    return config


@pytest.fixture(scope="module")
def grown(old, texts, tmp_path_factory):
    """The files of the corpus after an undisturbed addition."""
    out = tmp_path_factory.mktemp("grown") / "out"
    shutil.copytree(old, out)
    tokenize(addition_to(out, texts))
    return files_of(out)


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Returns the names of files that differ. Their content would be too long to show."""
    names = found.keys() | expected.keys()
    return sorted(name for name in names if found.get(name) != expected.get(name))


def check_old(out: Path, old: Path) -> None:
    """Asserts that the old corpus is whole, to the byte and for a run that was trained on it."""
    found, before = files_of(out), files_of(old)
    new = [name for name in differing(found, before) if name in before]
    assert new in ([], [FILE])
    assert load_manifest(out).at_edition(1).fingerprint == load_manifest(old).fingerprint
    verify(VerifyConfig(str(out), megatron=False, workers=1))


@pytest.mark.timeout(900)
def test_killed_at_random_moments_the_next_call_writes_the_same_bytes(old, grown, texts, tmp_path):
    timed = tmp_path / "timed" / "out"
    shutil.copytree(old, timed)
    run = Run(addition_to(timed, texts), tmp_path)
    started = time.monotonic()
    code, said = run.end()
    assert code == 0, said
    assert not differing(files_of(timed), grown)
    seconds = time.monotonic() - started
    draw = random.Random(1)
    under_way = trial = 0
    while under_way < TRIALS:
        trial += 1
        assert trial < 5 * TRIALS, f"only {under_way} of {trial} kills found a run under way"
        out = tmp_path / str(trial) / "out"
        shutil.copytree(old, out)
        run = Run(addition_to(out, texts), tmp_path)
        try:  # what is waited for is not an event: the moment itself is drawn
            run.process.wait(draw.uniform(0, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            assert run.kill() in (-signal.SIGKILL, 0)  # it may end by itself just before
        under_way += (out.parent / "out.partial").exists()
        check_old(out, old)
        tokenize(addition_to(out, texts, workers=1))
        check_old(out, old)
        assert not differing(files_of(out), grown)
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out.parent)


def test_a_disk_that_fills_up_leaves_the_old_corpus_whole(old, grown, texts, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    code, said = Run(addition_to(out, texts), tmp_path, preexec_fn=small_files).end()
    assert code == 1
    assert "out.partial cannot be written" in said.strip().splitlines()[-1]
    check_old(out, old)
    tokenize(addition_to(out, texts))
    assert not differing(files_of(out), grown)


def test_jobs_that_share_an_addition_write_the_same_bytes(old, grown, texts, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    rounds = 0
    while load_manifest(out).edition_count == 1:
        for rank in (2, 0, 1):
            config = addition_to(out, texts, workers=1)
            config.rank, config.world = rank, 3
            tokenize(config)
        rounds += 1
        assert rounds <= 6
    assert not differing(files_of(out), grown)
