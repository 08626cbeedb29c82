"""Training that begins with the model of a folder: its shape, what may change, and resumes."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from conf.chat import named_template
from conf.errors import InputError
from conf.model_card import CardConfig
from model.config import ModelConfig
from pretrain.export import ExportConfig, export, read_run_config
from pretrain.model_choice import check_initial
from tests.runs import arguments, records


def without_model(corpus, run_dir, **changes):
    """The command line of a run that does not say which model."""
    made = arguments(corpus.folder, run_dir, **changes)
    asked = {key.replace("__", ".") for key in changes}
    return [
        part
        for part in made
        if not part.startswith(("model=", "model.")) or part.partition("=")[0] in asked
    ]


@pytest.fixture(scope="module")
def base(command, corpus, tmp_path_factory):
    """The export of a short run."""
    folder = tmp_path_factory.mktemp("init_from")
    done = command(*arguments(corpus.folder, folder / "run", stop_after=5))
    assert done.returncode == 0, done.stderr
    done = command(
        *("pretrain", "export", f"run={folder / 'run'}", f"out={folder / 'base'}", "dtype=float32")
    )
    assert done.returncode == 0, done.stderr
    return folder / "base"


def test_a_folder_alone_gives_the_model_and_a_resume_does_without_it(
    command, corpus, base, tmp_path
):
    folder, run_dir = shutil.copytree(base, tmp_path / "base"), tmp_path / "run"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content + eos_token }}")
    generation = {"eos_token_id": [2, 7], "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/parent\n---\n# A model\n")
    longer = {"model__max_seq_len": 512, "model__rope_theta": 5e4, "init_from": folder}
    longer["checkpoint__every_steps"] = 1
    made = without_model(corpus, run_dir, **longer)
    done = command(*made, "stop_after=2")
    assert done.returncode == 0, done.stderr
    assert f"model.max_seq_len=512 replaces 256, the value of init_from={folder}." in done.stdout
    assert (
        f"model.rope_theta=50000.0 replaces 10000.0, the value of init_from={folder}" in done.stdout
    )
    model = read_run_config(run_dir).model
    assert (model.name, model.num_layers, model.sliding_window) == ("base", 2, 24)
    assert (model.max_seq_len, model.rope_theta) == (512, 5e4)

    shutil.rmtree(folder)
    done = command(*made, "stop_after=3")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in records(run_dir)] == [1, 2, 3]
    assert_export_is_of_the_model(run_dir, tmp_path / "exported")
    done = command("pretrain", "export", f"run={run_dir}", f"out={tmp_path / 'out'}", "step=0")
    assert done.returncode == 2
    assert f"step=0: the run started from init_from={folder}, which does not exist." in done.stderr
    done = command(*without_model(corpus, tmp_path / "other", **longer))
    assert done.returncode == 2
    assert f"{folder}/config.json does not exist" in done.stderr


def assert_export_is_of_the_model(run_dir, out):
    """The export has the model's template, generation config and license, without its folder."""
    card = CardConfig(base_model="owner/base", tags=["short"])
    export(ExportConfig(str(run_dir), out=str(out), card=card))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ messages[0].content + eos_token }}"
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == ([2, 7], 0.5)
    text = (out / "README.md").read_text()
    assert "base, continued with Headwater on 6,144 tokens." in text
    assert "from scratch" not in text
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["base_model"]) == ("mit", "owner/base")
    assert data["tags"] == ["headwater", "short"]
    assert not re.search(rf"{re.escape(str(out.parent))}|/home", "".join(texts(out)))
    template = named_template("chatml")
    export(ExportConfig(str(run_dir), out=str(out), chat_template=template, overwrite=True))
    assert (out / "chat_template.jinja").read_text() == template.template


def texts(folder):
    """The content of the files of a folder that are text."""
    return [path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"]


@pytest.mark.parametrize(
    "given",
    [
        ["pretrain", "memory", "build=false", "world_size=1"],
        ["launch", "plan", "nodes=1", "recipe=demo", "recipe.stages.long.seq_len=256"],
        ["launch", "local", "nproc=1", "dry_run=true", "--"],
    ],
)
def test_other_commands_take_the_folder_too(command, corpus, base, tmp_path, given):
    if given[-1] == "--":
        given = [*given, *without_model(corpus, tmp_path / "run", init_from=base)[1:]]
    else:
        given = [*given, f"init_from={base}"]
    done = command(*given)
    assert done.returncode == 0, done.stderr


def test_a_model_of_another_shape_is_refused(command, corpus, base, tmp_path):
    changes = {"init_from": base, "model__hidden_size": 128}
    done = command(*arguments(corpus.folder, tmp_path / "run", **changes))
    assert done.returncode == 2
    assert (
        f"init_from={base}: the run has another model than this folder: model.hidden_size=128 "
        "instead of 64" in done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_what_may_change_is_said():
    found = ModelConfig("f", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64)
    same = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64, init="scaled_residual")
    assert check_initial(found, same, "folder") == []
    longer = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=2**20, rope_theta=1e6)
    assert check_initial(found, longer, "folder") == [
        "model.max_seq_len=1048576 replaces 64, the value of init_from=folder.",
        "model.rope_theta=1000000.0 replaces 10000.0, the value of init_from=folder.",
    ]
    for key in ("vocab_size", "num_layers", "rms_norm_eps", "tie_embeddings"):
        other = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64)
        setattr(other, key, 4)
        with pytest.raises(InputError, match=rf"^init_from=folder: .*: model\.{key}=4 instead of"):
            check_initial(found, other, "folder")


def test_all_differences_are_in_one_sentence_and_rounding_is_none():
    found = ModelConfig("f", "llama", 64, 32, 32, 1, 2, 2, rms_norm_eps=9.999999747378752e-06)
    same = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, rms_norm_eps=1e-5)
    assert check_initial(found, same, "folder") == []
    other = ModelConfig("m", "llama", 96, 32, 32, 2, 2, 2, rms_norm_eps=2e-5)
    with pytest.raises(InputError) as raised:
        check_initial(found, other, "folder")
    assert str(raised.value) == (
        "init_from=folder: the run has another model than this folder: model.vocab_size=96 instead "
        "of 64, model.num_layers=2 instead of 1, model.rms_norm_eps=2e-05 instead of "
        "9.999999747378752e-06. Remove model= and these keys to use the model of the folder, or "
        "choose another folder."
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "config.json is not JSON"),
        ('{"model_type": "llama", "vocab_size": 8}', "the key hidden_size is missing"),
        ('{"model_type": "gpt2"}', "model_type=gpt2: expected one of"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(command, corpus, tmp_path, content, sentence):
    (tmp_path / "config.json").write_text(content)
    done = command(*without_model(corpus, tmp_path / "run", init_from=tmp_path))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_over_folders_needs_a_model(command, corpus, tmp_path):
    done = command(*without_model(corpus, tmp_path / "run", init_from="a,b"), "--multirun")
    assert done.returncode == 2
    assert "init_from=a,b: a sweep over folders does not determine the model" in done.stderr
