"""`launch status` and `launch stop` know the folder of a study."""

from __future__ import annotations

import json

import pytest

from conf.errors import InputError
from launch.slurm.manage import StopConfig, stop
from launch.studies.command import check_folder, start_again
from launch.studies.status import study_lines


@pytest.fixture
def folder(tmp_path):
    """A study with one run that has finished, one that has failed and one that has begun."""
    records = {name: {"code": 86 if name == "b" else None} for name in ("a", "b", "c")}
    (tmp_path / "runs.json").write_text(json.dumps(records))
    (tmp_path / "study.yaml").write_text("kind: grid\n")
    for name in records:
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "a" / "outcome.json").write_text('{"code": 0, "cause": "finished"}')
    return tmp_path


def test_a_study_has_one_line(folder):
    assert list(study_lines(folder.parent)) == [f"study {folder}: 1 of 3 runs finished, 1 failed"]


def test_a_stopped_study_continues_once_its_file_is_removed(folder):
    stop(StopConfig(run=str(folder)))
    assert [p.parent.name for p in sorted(folder.glob("runs/*/STOP"))] == ["b", "c"]
    with pytest.raises(InputError, match="STOP exists, which stops the study"):
        check_folder(folder)
    (folder / "STOP").unlink()
    check_folder(folder)
    start_again(folder)
    assert not list(folder.glob("runs/*/STOP"))
