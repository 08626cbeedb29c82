"""`python -m pretrain teach`: the same bytes from any processes, and a run that reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.progress import read_progress
from pretrain.teacher_cache.command import share_of, teach
from pretrain.teacher_cache.manifest import load_cache
from pretrain.teacher_cache.network import Network, process_alone
from pretrain.teacher_cache.reader import CacheReader
from pretrain.teacher_cache.records import ERROR_NATS, LEAST, as_bytes, context_hashes, decode
from pretrain.teacher_cache.teaching import Teaching
from tests.pretrain.teacher_cache.taught import files_of, make_teacher, teach_config


@pytest.fixture(scope="module")
def teacher(corpus: Manifest, tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "hf", corpus)


@pytest.fixture(scope="module")
def cache(corpus: Manifest, teacher: Path, tmp_path_factory) -> Path:
    """The cache of the first three steps of both stages' 20, in one unit."""
    out = tmp_path_factory.mktemp("cache") / "whole"
    teach(teach_config(teacher, corpus.folder, out, steps="9..12"))
    return out


def test_answers_are_those_of_the_network_for_the_samples_of_the_steps(corpus, teacher, cache):
    manifest = load_cache(cache, "out")
    assert manifest.steps == [9, 12]
    assert manifest.samples == [[256, 320], [0, 32]]  # steps 9 and 10 of short, 11 and 12 of long
    config = teach_config(teacher, corpus.folder, cache, steps="9..12")
    teaching = Teaching.of(config)
    reader, stored = teaching.reader(), CacheReader(cache, manifest)
    with process_alone("cpu") as device:
        answer = Network(config, teaching).load(device)
        for stage, sample in ((0, 256), (0, 319), (1, 0), (1, 31)):
            batch = reader.read(stage, [sample])
            records = stored.read(stage, sample, 1)
            assert records["context"] == context_hashes(batch)
            ids, log_probabilities, log_rest = decode(manifest.form(stage), as_bytes(records, 1))
            exact = answer(batch)
            assert (ids[..., 0] == exact.ids[..., 0]).float().mean() > 0.99  # or equally probable
            expressed = exact.log_probabilities > LEAST
            errors = (log_probabilities - exact.log_probabilities).abs()
            assert errors[expressed].max() < 2 * ERROR_NATS
            assert (log_rest - exact.log_rest).abs().max() < 2 * ERROR_NATS
            assert exact.log_rest.min() > LEAST


def test_two_processes_write_the_bytes_of_one(corpus, teacher, cache, tmp_path, capsys):
    """The second process of the two finishes the cache, whichever it is."""
    out = tmp_path / "shared"
    for rank in (1, 0):
        assert not out.exists()
        keys = {"steps": "9..12", "rank": rank, "world": 2}
        teach(teach_config(teacher, corpus.folder, out, **keys))
    assert files_of(out) == files_of(cache)
    assert not out.with_name("shared.partial").exists()
    printed = capsys.readouterr().out
    assert "1 of 2 are left to other processes" in printed
    before = files_of(out)
    teach(teach_config(teacher, corpus.folder, out, steps="9..12"))
    assert "is up to date" in capsys.readouterr().out
    assert files_of(out) == before


def test_the_plan_states_bytes_and_writes_nothing(corpus, teacher, tmp_path, capsys):
    teach(teach_config(teacher, corpus.folder, tmp_path / "out", do="plan"))
    printed = capsys.readouterr().out
    assert "40,960 tokens of steps 1 to 20, top_k=8: 34.1 bytes per token, 1.4 MB" in printed
    assert not list(tmp_path.iterdir())


def test_verify_names_the_damaged_file(cache, tmp_path, capsys):
    copy = shutil.copytree(cache, tmp_path / "copy")
    teach(teach_config(None, None, copy, do="verify"))
    assert "as written" in capsys.readouterr().out
    path = copy / "stage_1" / "000000000000.bin"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        teach(teach_config(None, None, copy, do="verify"))


def test_a_damaged_cache_is_replaced_if_asked(corpus, teacher, cache, tmp_path):
    copy = shutil.copytree(cache, tmp_path / "copy")
    (copy / "stage_0" / "000000000256.bin").unlink()
    with pytest.raises(InputError, match="is missing"):
        teach(teach_config(teacher, corpus.folder, copy, steps="9..12"))
    teach(teach_config(teacher, corpus.folder, copy, steps="9..12", overwrite=True))
    assert files_of(copy) == files_of(cache)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "3"}, r"steps=3: expected a range such as 1\.\.20"),
        ({"steps": "5..21"}, r"steps=5\.\.21: expected a range"),
        ({"top_k": 261}, "top_k=261: expected at most 259"),
        ({"device": "tpu"}, "device=tpu: unknown choice"),
        ({"recipe__stages__long__seq_len": 512}, "it has 256 positions"),
    ],
)
def test_wrong_settings_are_refused(corpus, teacher, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        teach(teach_config(teacher, corpus.folder, tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())


def test_unfinished_work_with_other_settings_is_kept(corpus, teacher, tmp_path):
    keys = {"rank": 0, "world": 2}
    teach(teach_config(teacher, corpus.folder, tmp_path / "out", steps="9..12", **keys))
    partial = tmp_path / "out.partial"
    before = files_of(partial)
    progress = read_progress(partial)  # as python -m launch status shows it
    assert (progress.phase, progress.done, progress.jobs) == ("teach", 0.5, 1)
    with pytest.raises(InputError, match="is unfinished work with another teacher or other"):
        teach(teach_config(teacher, corpus.folder, tmp_path / "out", steps="9..12", top_k=4))
    assert files_of(partial) == before


def test_shares_of_torchrun_inside_a_slurm_array(corpus, teacher, tmp_path, monkeypatch):
    config = teach_config(teacher, corpus.folder, tmp_path / "out")
    variables = {"RANK": "3", "WORLD_SIZE": "8"}
    variables |= {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4"}
    variables |= {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    share = share_of(config)
    assert (share.rank, share.world) == (2 * 8 + 3, 4 * 8)
    config.rank, config.world = 1, 3
    assert (share_of(config).rank, share_of(config).world) == (1, 3)


def test_the_manifest_names_the_teacher(cache, teacher):
    stated = json.loads((cache / "manifest.json").read_text())
    assert stated["teacher"]["path"] == str(teacher)
    assert len(stated["teacher"]["fingerprint"]) == 64
    assert stated["error_nats"] == ERROR_NATS
    assert sum(entry["bytes"] for entry in stated["files"]) == stated["bytes"]
    assert np.isclose(stated["bytes_per_token"], 34.1, atol=0.1)
