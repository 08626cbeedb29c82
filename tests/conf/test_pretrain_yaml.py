"""conf/command/pretrain.yaml shows every key of pretraining with the default of its dataclass."""

from __future__ import annotations

import yaml
from omegaconf import MISSING, OmegaConf

from conf.overrides import CONF_DIR, groups_of
from pretrain.config import PretrainConfig

CHOSEN = {"name", "run_dir"}
"""Keys without a default in the dataclass; the YAML gives one."""


def test_the_yaml_shows_every_key_with_its_default():
    shown = yaml.safe_load((CONF_DIR / "command" / "pretrain.yaml").read_text())
    del shown["defaults"]
    defaults = OmegaConf.to_container(OmegaConf.structured(PretrainConfig))
    assert isinstance(defaults, dict)
    assert defaults["data"].pop("folder") == MISSING
    shown["data"].pop("folder")
    for group in groups_of("pretrain"):
        defaults.pop(group)  # its choices are files of conf/<group>
    assert shown.keys() >= CHOSEN
    assert shown.keys() == defaults.keys()
    for key in shown.keys() - CHOSEN:
        assert shown[key] == defaults[key], key
