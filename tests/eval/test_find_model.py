"""Values of `model=`: a folder, a run, a checkpoint of a run, a name on the Hub."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from conf.errors import InputError
from eval import find_model
from eval.find_model import find_model as find
from eval.find_model import newest_step


@pytest.fixture
def run(tmp_path):
    """A minimal run folder with checkpoints of steps 4 and 12."""
    run = tmp_path / "run"
    for step in ("step_4", "step_12"):
        (run / "checkpoints" / step).mkdir(parents=True)
        (run / "checkpoints" / step / "manifest.json").write_text("{}")
    (run / "checkpoints" / "step_30.tmp").mkdir()
    (run / "checkpoints" / "step_20").mkdir()  # without a manifest: not whole
    (run / "config.yaml").write_text("name: run\n")
    return run


@pytest.fixture
def exported(monkeypatch, model):
    """Replaces the export command and records its calls."""
    calls = []

    def export(command, **_):
        given = dict(a.partition("=")[::2] for a in command if "=" in a)
        calls.append(given["step"])
        shutil.copytree(model, given["out"], dirs_exist_ok=True)
        os.utime(f"{given['out']}/config.json")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(find_model.subprocess, "run", export)
    return calls


def test_a_hugging_face_folder_is_returned_unchanged(model):
    assert find(str(model)) == model


def test_a_run_resolves_to_its_newest_complete_checkpoint(run, exported):
    assert newest_step(run) == "step_12"
    assert find(str(run)) == run / "export" / "step_12"
    assert find(str(run)) == run / "export" / "step_12"
    assert exported == ["12"]  # the second time it is there


def test_a_step_of_a_run(run, exported):
    assert find(str(run / "checkpoints" / "step_4")) == run / "export" / "step_4"
    assert find(str(run / "checkpoints" / "step_0")) == run / "export" / "step_0"
    assert exported == ["4", "0"]


def test_a_newer_checkpoint_is_exported_again(run, exported):
    find(str(run))
    manifest = run / "checkpoints" / "step_12" / "manifest.json"
    later = (run / "export" / "step_12" / "config.json").stat().st_mtime + 10
    os.utime(manifest, (later, later))
    find(str(run))
    assert exported == ["12", "12"]


def test_a_failed_export_reports_its_reason(run, command):
    """The real command fails, because this config is not valid."""
    with pytest.raises(InputError, match=r"step_12 could not be exported \("):
        find(str(run), "models.mine")


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="has no checkpoint yet"):
        find(str(tmp_path))


def hub(tmp_path, monkeypatch, model, **files):
    """A cache of the Hub that contains `owner/tiny`."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    snapshot = home / "models--owner--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(model, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return snapshot


def test_a_hub_name_is_resolved_from_the_cache(tmp_path, monkeypatch, model):
    snapshot = hub(tmp_path, monkeypatch, model)
    found = find("owner/tiny")
    assert found.resolve() == snapshot.resolve()
    assert json.loads((found / "config.json").read_text())["model_type"] == "mistral"
    assert find(f"owner/tiny@{'a' * 40}").resolve() == snapshot.resolve()


def test_a_hub_name_that_cannot_be_downloaded(tmp_path, monkeypatch, model):
    hub(tmp_path, monkeypatch, model)
    with pytest.raises(InputError) as caught:
        find("owner/huge", "models.mine")
    said = str(caught.value)
    assert said.startswith("models.mine=owner/huge: there is no such Hugging Face folder or run")
    assert "there is no network (HF_HUB_OFFLINE=1)" in said
    assert "hf download owner/huge" in said
    with pytest.raises(InputError, match="the folder has no config"):
        find("some/where/deep")
