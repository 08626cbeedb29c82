"""Renamed keys are understood on command lines, in YAML files and in the records of old runs."""

from __future__ import annotations

import pytest

from conf.errors import InputError
from conf.overrides import kind_of
from conf.renamed import RENAMED, load_run_config, rename_keys
from finetune.config import SftConfig
from pretrain.config import PretrainConfig


def test_every_new_name_exists_and_no_old_one_does():
    for old, new in RENAMED.items():
        kinds = [
            (kind_of(schema, old), kind_of(schema, new)) for schema in (PretrainConfig, SftConfig)
        ]
        assert any(before is None and after is not None for before, after in kinds), old


def test_on_a_command_line(command):
    done = command(
        "pretrain", "optim=muon", "optim.clip_norm=0.5", "optim.muon_steps=3", "--cfg", "job"
    )
    assert done.returncode == 0, done.stderr
    assert "max_grad_norm: 0.5" in done.stdout
    assert "ns_steps: 3" in done.stdout
    assert done.stderr.count("optim.clip_norm is now named optim.max_grad_norm") == 1


def test_in_a_yaml_file(command, tmp_path):
    folder = tmp_path / "optim"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "defaults: [muon]\nlearning_rate: 1.0e-3\nclip_norm: 0.25\nmuon_momentum: 0.9\n"
    )
    done = command("pretrain", "--config-dir", str(tmp_path), "optim=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "max_grad_norm: 0.25" in done.stdout
    assert "momentum: 0.9\n" in done.stdout
    assert "ns_steps: 5" in done.stdout
    assert "optim.muon_momentum is now named optim.options.momentum" in done.stderr


def test_in_the_record_of_a_run(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optim:\n  name: muon\n  clip_norm: 0.5\n  muon_steps: 4\n")
    assert load_run_config(path) == {
        "optim": {"name": "muon", "max_grad_norm": 0.5, "options": {"ns_steps": 4}}
    }


def test_options_of_muon_in_the_record_of_another_optimizer_are_dropped():
    stored = {"optim": {"name": "adamw", "clip_norm": 1.0, "muon_momentum": 0.95, "muon_steps": 5}}
    assert rename_keys(stored) == {"optim": {"name": "adamw", "max_grad_norm": 1.0}}


def test_both_names_at_once_are_refused():
    with pytest.raises(InputError, match=r"optim\.clip_norm=1: optim\.max_grad_norm, the new name"):
        rename_keys({"optim": {"clip_norm": 1, "max_grad_norm": 2}})
    with pytest.raises(InputError, match="the new name"):
        rename_keys({"clip_norm": 1, "max_grad_norm": 2}, package="optim")
