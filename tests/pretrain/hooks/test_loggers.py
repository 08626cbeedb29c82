"""The registry of loggers, and what `logger=` composes."""

from __future__ import annotations

import pytest

from conf.errors import InputError
from conf.overrides import readable
from conf.wandb_run import LoggerConfig
from pretrain.config import PretrainConfig
from pretrain.hooks.loggers import build_loggers, check_loggers, scalars
from pretrain.hooks.wandb_logger import WandbLogger
from tests.runs import settings


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"logger": "files"}, []),
        ({"logger": "wandb"}, ["wandb"]),
        ({"logger": "[wandb]"}, ["wandb"]),
        ({"logger": "files", "logger__wandb": "offline"}, ["wandb"]),
        ({"logger": "wandb", "logger__wandb": "disabled"}, []),
    ],
)
def test_choices(given, chosen, tmp_path):
    config = settings(tmp_path, tmp_path, **given)
    assert config.logger.chosen() == chosen
    hooks = build_loggers(tmp_path, config.logger)
    assert [isinstance(hook, WandbLogger) for hook in hooks] == [True] * len(chosen)


def test_several_loggers_are_a_list():
    with pytest.raises(InputError, match=r"Write logger=\[files,wandb\] to merge several"):
        readable(["logger=files,wandb"], "pretrain", PretrainConfig)
    with pytest.raises(InputError, match=r"logger=wanb: unknown choice.*'wandb'"):
        readable(["logger=[files,wanb]"], "pretrain", PretrainConfig)


def test_an_unknown_logger_is_refused():
    with pytest.raises(InputError, match=r"logger\.trackers=wanbd: unknown choice.*'wandb'"):
        check_loggers(LoggerConfig(trackers={"wanbd": {}}))
    with pytest.raises(InputError, match=r"logger\.trackers=other: .* only to files and wandb"):
        LoggerConfig(trackers={"other": {}}).check_wandb_only()


def test_the_numbers_of_a_record_have_paths():
    record = {"step": 3, "time": 9.0, "loss": 2.0, "stage": "a", "source_loss": {"web": 1.5}}
    assert scalars("train", record) == {"train/loss": 2.0, "train/source_loss/web": 1.5}
    scores = {"acc": 0.5, "depths": {"25": {"acc": 0.25}}, "needle": {"length": 512}}
    found = scalars("eval", {"tasks": {"find": scores}})
    assert found == {"eval/tasks/find/acc": 0.5, "eval/tasks/find/depths/25/acc": 0.25}
