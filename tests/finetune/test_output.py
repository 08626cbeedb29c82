"""The folder of the work of a tuning, and how it becomes the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conf.errors import InputError
from finetune import output
from finetune.config import SftConfig

RECORD = '{"model": "a", "inputs": "%s"}'


def tune(config: SftConfig, inputs: str) -> None:
    """Makes a folder as tuning does."""
    output.check_out(config, writes=True)
    if output.is_done(config, inputs):
        return
    with output.staged(output.output_of(config), inputs, writes=True) as (work, _):
        (work / "metrics.jsonl").touch()
        (work / output.RESULT / "config.json").write_text("{}")
        (work / output.RESULT / "sft.json").write_text(RECORD % inputs)


@pytest.fixture
def config(tmp_path: Path) -> SftConfig:
    return SftConfig(model="none", data="none", out=str(tmp_path / "chat"))


def test_killed_after_the_result_is_in_place(config, tmp_path, monkeypatch):
    """The next call says that it is done, or makes what it is asked for; nothing is left over."""
    tune(config, "a")
    config = replace(config, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "put", lambda self, made: killed(self, made))
        with pytest.raises(KeyboardInterrupt):
            tune(config, "b")
    assert (tmp_path / "chat" / "sft.json").read_text() == RECORD % "b"
    (tmp_path / "chat.tmp").mkdir(exist_ok=True)  # as a kill leaves it
    (tmp_path / "chat.tmp" / output.INPUTS).write_text("b")
    tune(replace(config, overwrite=False), "b")
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
    tune(config, "c")
    assert (tmp_path / "chat" / "sft.json").read_text() == RECORD % "c"
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]


def killed(made_output: output.Output, made: Path) -> None:
    """Puts the result in place and gets no further."""
    made_output._put(made)
    raise KeyboardInterrupt


def test_a_folder_in_the_way_of_the_work_is_left_alone(config, tmp_path):
    (tmp_path / "chat.tmp").mkdir()
    (tmp_path / "chat.tmp" / "thesis.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"checkpoints would be stored in .*chat\.tmp, which exists"
    ):
        tune(config, "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["chat.tmp", "thesis.txt"]
