"""Publishing a model on a stand-in of the Hub: all parts, once, and nothing that is secret."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from conf.errors import EXIT_STORAGE, InputError, RunAborted
from eval.publish.config import PublishConfig
from eval.publish.publish import publish
from tests.eval.publish.hub_server import TOKEN, HubServer, running

CARD = """---
library_name: transformers
license: apache-2.0
---
# river

A decoder. `AutoModelForCausalLM.from_pretrained("FOLDER")`
"""
REPO = "me/river"


@pytest.fixture
def server(monkeypatch):
    """The stand-in, to which huggingface_hub is directed without a restart."""
    with running() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield started


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with files like those of an export, of which two are weights."""
    folder = tmp_path / "work" / "river"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "mistral"}\n')
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": list(range(2000))}))
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 9000)
    (folder / "training_args.bin").write_bytes(b"pickled")
    return folder


def run(model: Path | None, **settings: Any) -> None:
    publish(PublishConfig(model=None if model is None else str(model), repo=REPO, **settings))


def names(server: HubServer, branch: str = "main") -> set[str]:
    return {*server.repos[REPO].files(branch)} - {".gitattributes"}


def test_a_model_is_published_with_card_weights_and_gguf(server, model, tmp_path, capsys):
    gguf = tmp_path / "river-q8_0.gguf"
    gguf.write_bytes(b"GGUF" * 3)
    run(model, gguf=[str(gguf)])
    repo = server.repos[REPO]
    assert repo.private
    assert names(server) == {
        *("README.md", "config.json", "tokenizer.json", "chat_template.jinja", gguf.name),
        *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)),
    }
    for path in (*model.glob("*.safetensors"), model / "tokenizer.json", gguf):
        assert repo.files("main")[path.name][1] == path.read_bytes()
    assert repo.titles("main")[-1] == "Upload 4 other files", "the card is last"
    assert f'from_pretrained("{REPO}")' in repo.files("main")["README.md"][1].decode()
    printed = capsys.readouterr().out
    assert "not published: checkpoints, training_args.bin" in printed
    assert f"{server.endpoint}/{REPO}" in printed


def test_an_interrupted_upload_is_continued(server, model, capsys):
    server.refuse = ("POST /api/models/me/river/commit/", 1)
    with pytest.raises(RunAborted, match="Run the same command again to continue it") as raised:
        run(model)
    assert raised.value.exit_code == EXIT_STORAGE
    assert names(server) == {"model-00001-of-00002.safetensors"}
    assert len(server.received) == 2, "the second file had arrived, but was not committed"
    capsys.readouterr()
    run(model)
    assert len(names(server)) == 6
    assert len(server.received) == len(set(server.received)) == 3, "nothing was sent twice"
    printed = capsys.readouterr().out
    assert "main: model-00001-of-00002.safetensors was already there" in printed
    assert "main: model-00002-of-00002.safetensors published" in printed
    commits = len(server.repos[REPO].branches["main"])
    run(model)
    assert len(server.repos[REPO].branches["main"]) == commits, "the same again changes nothing"


PLANTED = {
    "README.md": ("see hf_" + "a1B2" * 9, "a token of the Hugging Face Hub (hf_a1B2a...)"),
    "config.json": ('{"key": "sk-' + "x" * 24 + '"}', "a key of an OpenAI-compatible service"),
    "chat_template.jinja": ("{# AKIA" + "Q7" * 8 + " #}", "a key of AWS"),
    "notes.txt": ("ghp_" + "z" * 36, "a token of GitHub"),
    "metrics.jsonl": ('{"data": "/home/anna/text"}', "a path of a home folder (/home/anna/text)"),
    "tuning.json": ('["C:\\\\Users\\\\anna"]', "a path of a home folder"),
    "LICENSE": ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
    "more.json": ('["https://anna:pa55word@host/x"]', "a password in an address"),
    "other.json": ('["/root/data"]', "a path of a home folder (/root/data)"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_or_a_home_path_is_refused_by_file_and_line(name, dry_run, server, model):
    path, (text, kind) = model / name, PLANTED[name]
    before = path.read_text() if path.exists() else "\n\n"
    path.write_text(f"{before}{text}\n")
    line = len(before.splitlines()) + 1
    with pytest.raises(InputError) as refused:
        run(model, dry_run=dry_run)
    assert f"{name}, line {line}: {kind}" in str(refused.value)
    assert not server.requests


def test_a_path_in_this_users_home_is_refused(server, model, monkeypatch):
    monkeypatch.setenv("HOME", "/mnt/people/anna")
    (model / "config.json").write_text('{\n "from": "/mnt/people/anna/run"}\n')
    with pytest.raises(InputError, match=r"config.json, line 2: .* \(/mnt/people/anna/run\)"):
        run(model)


def test_a_vocabulary_is_no_leak(server, model):
    words = ["/home", "/Users/", "hf_", "sk-", "task-" + "a" * 30, "chief_" + "a" * 40, "://a:"]
    (model / "tokenizer.json").write_text(json.dumps({"vocab": words}))
    run(model, dry_run=True)


def test_a_dry_run_lists_and_sends_nothing(server, model, capsys):
    run(model, dry_run=True)
    assert not server.requests
    printed = capsys.readouterr().out
    assert "model-00001-of-00002.safetensors  9 kB" in printed
    assert "nothing was sent" in printed


def scored(folder: Path, value: float, **more: Any) -> dict[str, Any]:
    task: dict[str, Any] = {
        "metrics": {"acc": {"value": value, "stderr": 0.1}},
        "shown": None,
        "group": None,
    }
    task |= {"samples": 4, "chance": 0.25, "num_fewshot": 0}
    models = {"mine": {"folder": str(folder), "tasks": {"piqa": task}}, **more}
    return {"format": 1, "models": models}


def test_scores_next_to_the_model_are_its_model_index(server, model):
    (model.parent / "results.json").write_text(json.dumps(scored(model, 0.625)))
    (model.parent / "others.json").write_text(json.dumps(scored(model.parent / "sea", 0.5)))
    (model.parent / "note.json").write_text("not JSON")
    run(model)
    card: Any = ModelCard(server.repos[REPO].files("main")["README.md"][1].decode())
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("piqa", "acc", 62.5)
    assert card.data.license == "apache-2.0"
    assert "results.json" not in names(server), "it has paths of this machine"
    assert "model-index" not in (model / "README.md").read_text()


def test_results_of_another_model_are_refused(server, model, tmp_path):
    path = tmp_path / "others.json"
    path.write_text(json.dumps(scored(tmp_path / "sea", 0.5)))
    with pytest.raises(InputError, match=r"results=.*others.json: it has no scores of"):
        run(model, results=[str(path)])


def test_a_public_repository_needs_consent(server, model):
    run(model, private=False)
    assert not server.repos[REPO].private
    with pytest.raises(InputError, match=r"repo=me/river: the repository is public.*private=false"):
        run(model)
    run(model, private=False)


def test_without_access_the_remedy_is_named(server, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    with pytest.raises(InputError, match=r"the Hub denies access\. Log in with hf auth login"):
        run(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        run(model)


def test_a_card_that_the_hub_refuses_is_a_sentence(server, model):
    (model / "README.md").write_text(CARD.replace("apache-2.0", "no such license"))
    with pytest.raises(InputError, match=r'does not accept the files .*"license" must be one of'):
        run(model)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "model=null: nothing to publish"),
        ({"model": "x", "run": "y"}, r"run=y, steps=\[\]: one requires the other"),
        ({"model": "x", "steps": [1]}, r"run=None, steps=\[1\]: one requires the other"),
        ({"run": "y", "steps": [1], "gguf": ["z"]}, r"gguf=\['z'\]: requires model"),
        ({"run": "y", "steps": [1, 1]}, "a step is repeated"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        PublishConfig(repo=REPO, **settings)


@pytest.mark.parametrize("repo", ["river", "me/ri ver", "me/you/river"])
def test_a_name_needs_an_owner(repo, model):
    with pytest.raises(InputError, match=f"repo={repo}: .*Give owner/name"):
        publish(PublishConfig(model=str(model), repo=repo))


def test_a_folder_without_a_card_is_refused(model):
    (model / "README.md").unlink()
    with pytest.raises(InputError, match=r"README\.md is missing"):
        run(model)


def test_steps_are_branches_that_have_only_their_own_files(server, model):
    """A branch starts at the first commit of the repository, not at the last model on main."""
    run(model)
    run_folder = model.parent / "run"
    for step in (100, 2000):
        (run_folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
        export = shutil.copytree(model, run_folder / "export" / f"step_{step}")
        (export / "model-00001-of-00002.safetensors").write_bytes(str(step).encode())
        (export / "model-00002-of-00002.safetensors").unlink()
    run(None, run=str(run_folder), steps=[100, 2000])
    repo = server.repos[REPO]
    assert repo.branches.keys() == {"main", "step-100", "step-2000"}
    for step in (100, 2000):
        files = repo.files(f"step-{step}")
        assert files["model-00001-of-00002.safetensors"][1] == str(step).encode()
        assert "model-00002-of-00002.safetensors" not in files
        text = files["README.md"][1].decode()
        assert f'from_pretrained("{REPO}", revision="step-{step}")' in text
        assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert len(repo.files("main")["model-00001-of-00002.safetensors"][1]) == 9000
    with pytest.raises(InputError, match=r"steps=\[7\]: .*run has no checkpoint of step 7"):
        run(None, run=str(run_folder), steps=[7])
