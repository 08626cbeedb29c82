"""Reading of answers by sample number: across files and caches, and damage that is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shards import DamagedShard
from pretrain.teacher_cache.command import teach
from pretrain.teacher_cache.manifest import load_cache
from pretrain.teacher_cache.reader import AnswerReader
from pretrain.teacher_cache.records import context_hashes
from pretrain.teacher_cache.teaching import Teaching
from tests.pretrain.teacher_cache.taught import SHORT, make_teacher, teach_config


@pytest.fixture(scope="module")
def taught(corpus: Manifest, tmp_path_factory) -> tuple[Teaching, list[Path]]:
    """The caches of steps 1 and 2, and 2 to 4, with files of 32 samples of the first stage."""
    folder = tmp_path_factory.mktemp("taught")
    teacher = make_teacher(folder / "hf", corpus)
    made = []
    for steps in ("1..2", "2..4"):
        out = folder / steps.replace("..", "_")
        config = teach_config(teacher, corpus.folder, out, steps=steps, unit_tokens=2048, **SHORT)
        teach(config)
        made.append(out)
    return Teaching.of(config), made


def reader_of(teaching: Teaching, folders: list[Path]) -> AnswerReader:
    return AnswerReader(
        {str(folder): load_cache(folder, "out") for folder in folders}, teaching.run
    )


def hashes(teaching: Teaching, samples: list[int], stage: int = 0):
    return context_hashes(teaching.reader().read(stage, samples))


def test_samples_are_read_across_files_and_caches_in_any_order(taught):
    teaching, folders = taught
    samples = [63, 3, 4, 31, 32, 33, 0]
    contexts = hashes(teaching, samples)
    found = reader_of(teaching, folders).read(0, np.array(samples), contexts)
    assert (found["context"] == contexts).all()
    late = reader_of(teaching, folders[::-1]).read(0, np.array(samples), contexts)
    assert late.tobytes() == found.tobytes()
    assert len(reader_of(teaching, folders).read(0, np.zeros(0, np.int64), contexts[:0])) == 0
    with pytest.raises(IndexError, match="no cache has sample 5"):
        reader_of(teaching, folders[1:]).read(0, np.array([5]), contexts[:1])


def test_answers_to_other_tokens_are_refused(taught):
    teaching, folders = taught
    wrong = hashes(teaching, [0, 1])
    wrong[1] += 1
    with pytest.raises(
        DamagedShard, match=r"1_2: the teacher's answers to sample 1 of stage 'short"
    ):
        reader_of(teaching, folders).read(0, np.array([0, 1]), wrong)


def test_damage_is_named_when_it_is_first_read(taught, tmp_path):
    teaching, folders = taught
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    path = copy / "stage_0" / "000000000032.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the second of its two blocks
    path.write_bytes(content)
    reader = reader_of(teaching, [copy])
    early, late = np.array([0, 40]), np.array([63])
    reader.read(0, early, hashes(teaching, [0, 40]))
    with pytest.raises(
        DamagedShard, match=rf"{path}: checksum mismatch in the answers to samples 6"
    ):
        reader.read(0, late, hashes(teaching, [63]))
    os.truncate(path, len(content) - 7)
    with pytest.raises(DamagedShard, match="has shrunk to"):
        reader.read(0, early, hashes(teaching, [0, 40]))
    with pytest.raises(DamagedShard, match=r"bytes instead of \d+. The file is truncated"):
        load_cache(copy, "out")
    path.unlink()
    with pytest.raises(DamagedShard, match=rf"{path} is missing"):
        load_cache(copy, "out")
