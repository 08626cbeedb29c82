"""Bad input ends before any training: exit code 2, one sentence, nothing half-written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from conf.errors import EXIT_CHECKPOINT, InputError
from pretrain.checks import check_run_folder
from tests.runs import arguments

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"optim__lerning_rate": 1}, "optim.lerning_rate is not a key of this config"),
    "wrong type": ({"optim__learning_rate": "fast"}, "optim.learning_rate: value 'fast'"),
    "unknown choice": ({"model": "danube_9b"}, "model=danube_9b: unknown choice"),
    "batch does not fit the layout": (
        {"parallel__micro_batch_tokens": 1500},
        "parallel.micro_batch_tokens=1500: expected a multiple of recipe.stages.short.seq_len=64",
    ),
    "layout does not fit the processes": (
        {"parallel__tp": 2},
        "tp=2 does not match the number of processes, 1",
    ),
    "no corpus": ({"data__folder": "nowhere"}, "nowhere/manifest.json does not exist"),
    "unknown source": (
        {"+recipe__stages__short__mixture__cod": 1},
        "recipe.stages.short.mixture.cod=1.0: the corpus has no source 'cod'",
    ),
    "vocabulary larger than the model's": (
        {"model__vocab_size": 128},
        "model.vocab_size=128: expected 259 or more, the vocabulary size of",
    ),
    "sequence longer than the model": (
        {"model__max_seq_len": 100},
        "recipe.stages.long.seq_len=128: expected at most model.max_seq_len=100",
    ),
    "validation shorter than a sequence of the last stage": (
        {"validation__tokens": 127},
        "validation.tokens=127: expected 128 or more, the length of one sequence of stage 'long'",
    ),
    "too many epochs": (
        {"recipe__stages__short__tokens": 5_000_000},
        "the recipe reads source 'code'",
    ),
    "unknown attention": ({"parallel__attention": "flsh"}, "attention=flsh: unknown choice"),
    "fp8 of odd sizes": (
        {"precision": "fp8", "model__intermediate_size": 100},
        "model.intermediate_size=100 is not a multiple of 16",
    ),
    "unknown checkpointing": (
        {"parallel__activation_checkpointing": "ful"},
        "parallel.activation_checkpointing=ful: unknown choice (did you mean 'full'?)",
    ),
    "memory snapshot of a CPU": (
        {"profile__memory": "true"},
        "profile.memory=true: requires CUDA, but the run is on cpu",
    ),
    "profile of no rank": (
        {"profile__ranks": "[1]"},
        "profile.ranks=[1]: the run has no rank 1",
    ),
    "profile before the first step": (
        {"profile__steps": "[0]"},
        "profile.steps=[0]: expected step numbers of 1 or more",
    ),
    "interval without a time to failure": (
        {"checkpoint__interval": "auto"},
        "checkpoint.interval=auto: requires checkpoint.mttf_hours",
    ),
    "negative keep": ({"checkpoint__keep_best": -1}, "checkpoint.keep_best=-1: expected 0 or"),
    "no time to write": (
        {"checkpoint__timeout_minutes": 0},
        "checkpoint.timeout_minutes=0.0: expected more than 0",
    ),
    "a copy next to it": (
        {"checkpoint__copy_to": "copies"},
        "checkpoint.copy_to=copies: expected a URL such as s3://bucket/run",
    ),
    "no model to start from": ({"init_from": "nowhere"}, "nowhere/config.json does not exist"),
}


def refused(done, sentence, run_dir):
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr
    assert not run_dir.exists()


@pytest.mark.parametrize("case", CASES)
def test_bad_settings(case, command, corpus, tmp_path):
    changes, sentence = CASES[case]
    run_dir = tmp_path / "run"
    refused(command(*arguments(corpus.folder, run_dir, **changes)), sentence, run_dir)


@pytest.mark.parametrize("text", ["model: mine\n", "- a\n", "{", "model: {a: 1}\ndata: {}\n"])
def test_a_folder_with_a_config_of_another_program(text, tmp_path):
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"run_dir=.*mine: the config\.yaml of this folder does not"
    ):
        check_run_folder(run_dir)


def test_a_folder_of_another_program_stays_as_it_is(command, corpus, tmp_path):
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("model: mine\n")
    done = command(*arguments(corpus.folder, run_dir))
    assert done.returncode == 2, done.stderr
    assert f"error: run_dir={run_dir}: the config.yaml of this folder does not" in done.stderr
    assert [path.name for path in run_dir.iterdir()] == ["config.yaml"]
    assert (run_dir / "config.yaml").read_text() == "model: mine\n"


def test_heads_that_do_not_split_over_tensor_parallel(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    changes = {"parallel__tp": 2, "model__num_kv_heads": 1}
    done = command(*arguments(corpus.folder, run_dir, **changes), processes=2)
    assert done.returncode != 0
    assert "error: model.num_kv_heads=1: expected a multiple of parallel.tp=2" in done.stderr
    assert done.stderr.count("error: model.") == 1  # one rank speaks for all
    assert not run_dir.exists()


def test_another_tokenizer(command, damaged, tmp_path):
    path = damaged / "tokenizer.json"
    about = json.loads(path.read_text())
    about["added_tokens"][0]["content"] = "<nothing>"
    path.write_text(json.dumps(about))
    done = command(*arguments(damaged, tmp_path / "run"))
    refused(done, "tokenizer.json has the fingerprint", tmp_path / "run")


def test_a_truncated_shard(command, damaged, tmp_path):
    path = damaged / "train" / "prose-00001.bin"
    path.write_bytes(path.read_bytes()[:-10])
    done = command(*arguments(damaged, tmp_path / "run"))
    refused(done, "prose-00001.bin has", tmp_path / "run")


def test_a_token_beyond_the_vocabulary(command, damaged, tmp_path):
    for path in (damaged / "train").glob("code-*.bin"):
        np.full(path.stat().st_size // 2, 40_000, np.uint16).tofile(path)
    done = command(*arguments(damaged, tmp_path / "run"))
    refused(done, "the id 40000 at token 0, outside the vocabulary of 259", tmp_path / "run")


def test_another_model_or_order_on_resume(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=5))
    assert done.returncode == 0, done.stderr
    before = sorted(path.name for path in run_dir.rglob("*"))
    for changes, sentence in (
        ({"model__num_layers": 3}, "model.num_layers=3: "),
        ({"seed": 1}, "was trained in another order of samples"),
    ):
        done = command(*arguments(corpus.folder, run_dir, **changes))
        assert done.returncode == 2
        assert sentence in done.stderr
    assert sorted(path.name for path in run_dir.rglob("*")) == before


def test_only_damaged_checkpoints(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=5))
    assert done.returncode == 0, done.stderr
    (run_dir / "checkpoints" / "step_5" / "__0_0.distcp").write_bytes(b"short")
    done = command(*arguments(corpus.folder, run_dir))
    assert done.returncode == EXIT_CHECKPOINT
    assert "has no complete checkpoint. The newest: " in done.stderr
    assert "has 5 bytes, but its manifest lists" in done.stderr
