"""A run that was made before keys were renamed and parameter groups existed is resumed.

`old_config.yaml` is the config of a run as it was written then: Muon, `clip_norm`, `muon_steps`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from conf.errors import InputError
from pretrain.config import OptimConfig
from pretrain.export import read_run_config
from pretrain.health.changes import check_changes
from pretrain.optim import with_all_options
from tests.runs import arguments, settings

OLD = Path(__file__).parent / "old_config.yaml"
SAME = {"optim__name": "muon", "optim__max_grad_norm": 0.5, "parallel__dp_shard": 1}


@pytest.fixture
def old_run(tmp_path):
    run_dir = tmp_path / "old"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(OLD.read_text())
    return run_dir


def config_of(run_dir, **changes):
    config = settings("data/tiny", run_dir, **{**SAME, "+optim__options__ns_steps": 4, **changes})
    config.optim = with_all_options(config.optim)
    return config


def test_the_same_settings_are_no_change(old_run):
    assert check_changes(config_of(old_run)) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__max_grad_norm": 1.0}, "optim.max_grad_norm was 0.5, now 1.0"),
        ({"+optim__options__ns_steps": 5}, "optim.options.ns_steps was 4, now 5"),
        ({"+optim__groups": "{all:{match:'*',lr_scale:0.5}}"}, "optim.groups was {}, now {'all'"),
    ],
)
def test_a_change_is_found_under_the_new_name(old_run, changes, message):
    with pytest.raises(InputError) as refused:
        check_changes(config_of(old_run, **changes))
    assert message in str(refused.value)


def test_it_is_read_for_an_export(old_run):
    config = read_run_config(old_run)
    assert config.optim.max_grad_norm == 0.5
    assert config.optim.options == {"momentum": 0.95, "ns_steps": 4}
    assert isinstance(config.optim, OptimConfig)


def test_it_continues(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **SAME)
    options = "+optim.options.ns_steps=4"
    done = command(*training, options, "stop_after=5")
    assert done.returncode == 0, done.stderr
    path = run_dir / "config.yaml"
    old = OmegaConf.load(OLD)
    made = OmegaConf.load(path)
    made.optim = old.optim
    path.write_text(OmegaConf.to_yaml(made))
    done = command(*training, options, "stop_after=6")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stdout
    assert "changed since the last start: optim" not in done.stdout
    assert "clip_norm" not in yaml.safe_load(path.read_text())["optim"]
