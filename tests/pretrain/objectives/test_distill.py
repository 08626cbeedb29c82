"""Runs that learn from a teacher: what they record, resumes, and teachers that are refused."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
import torch.distributed as dist

from conf.errors import InputError
from data_pipeline.sampling.recipe import StagePlan
from pretrain import trainer
from pretrain.checkpoints import files, read
from pretrain.checks import check_objective
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks.run_files import RunFiles
from pretrain.objectives import build_objective
from pretrain.processes import start
from pretrain.setup import prepare
from tests.corpora import byte_tokenizer
from tests.runs import arguments, records, settings

SHORT: dict[str, Any] = {
    "recipe__stages__short__tokens": 6144,
    "recipe__stages__long__tokens": 4096,
    "validation__every_steps": 0,
    "checkpoint__every_steps": 0,
}
"""5 steps, 3 of them with sequences of 64 tokens."""
DISTILL: dict[str, Any] = {
    "objective": "distill",
    "objective__top_k": 16,
    "objective__temperature": 1.5,
}


def train(warm, corpus, run_dir, ranks=1, code=0, **changes):
    ended = warm.run(arguments(corpus.folder, run_dir, **SHORT | changes), ranks, run_dir.parent)
    assert set(ended.codes) == {code}, ended.said
    return run_dir


def weights(run_dir, step=5):
    return dict(read.weights(run_dir / "checkpoints" / f"step_{step}"))


@pytest.fixture(scope="module")
def teacher(warm, corpus, tmp_path_factory):
    """A run of a wider model, stopped after step 4."""
    folder = tmp_path_factory.mktemp("teacher")
    wide = {"model__hidden_size": 96, "model__sliding_window": None, "checkpoint__every_steps": 2}
    return train(warm, corpus, folder / "run", stop_after=4, **wide)


@pytest.fixture(scope="module")
def folder(command, teacher):
    """The export of the teacher."""
    out = teacher.parent / "export"
    done = command("pretrain", "export", f"run={teacher}", f"out={out}", "dtype=float32")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def taught(warm, corpus, folder, tmp_path_factory):
    """A run that learned from the export."""
    run_dir = tmp_path_factory.mktemp("taught") / "run"
    return train(warm, corpus, run_dir, **DISTILL, objective__teacher=folder)


def test_a_run_records_what_it_learned_and_names_its_teacher(taught, folder, command, tmp_path):
    first, *_, last = records(taught)
    assert last["kl"] < first["kl"]
    assert last["loss"] < first["loss"]
    assert first["agreement"] < last["agreement"] <= 1
    env = json.loads((taught / "env.json").read_text())["teacher"]
    assert env["path"] == str(folder)
    assert len(env["fingerprint"]) == 64
    assert files.read_manifest(taught / "checkpoints" / "step_5")["teacher"] == env
    out = tmp_path / "out"
    done = command("pretrain", "export", f"run={taught}", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert (
        f"| taught by | {folder.name}, {env['fingerprint'][:16]}; "
        in (out / "README.md").read_text()
    )


def test_a_run_teaches_like_its_export(taught, teacher, warm, corpus, tmp_path):
    for name, path in (("newest", teacher), ("step", f"{teacher}@4")):
        run_dir = tmp_path / name / "run"
        found = train(warm, corpus, run_dir, **DISTILL, objective__teacher=path)
        assert [(r["kl"], r["loss"]) for r in records(found)] == [
            (r["kl"], r["loss"]) for r in records(taught)
        ]
    earlier = train(
        *(warm, corpus, tmp_path / "earlier" / "run"), **DISTILL, objective__teacher=f"{teacher}@2"
    )
    assert records(earlier)[0]["kl"] != records(taught)[0]["kl"]


def test_a_resumed_run_has_the_same_bits(taught, folder, warm, corpus, tmp_path):
    run_dir = tmp_path / "run"
    for step in (2, 5):
        train(warm, corpus, run_dir, **DISTILL, objective__teacher=folder, stop_after=step)
    for name, value in weights(run_dir).items():
        assert torch.equal(value, weights(taught)[name]), name


def test_layouts_with_another_window_take_the_same_steps(taught, folder, warm, corpus, tmp_path):
    changes = DISTILL | {"objective__teacher": folder}
    for layout in ({"cp": 2}, {"tp": 2}):
        found = train(
            *(warm, corpus, tmp_path / str(layout) / "run", 2),
            **changes | {f"parallel__{key}": value for key, value in layout.items()},
        )
        for ours, theirs in zip(records(found), records(taught), strict=True):
            for key in ("loss", "kl", "agreement", "grad_norm"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


def test_other_weights_are_refused_at_a_resume(folder, warm, corpus, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    changes = DISTILL | {"objective__teacher": copy}
    run_dir = train(warm, corpus, tmp_path / "run", stop_after=1, **changes)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    train(warm, corpus, run_dir, code=2, **changes)
    said = (tmp_path / "rank0.txt").read_text()
    assert f"objective.teacher={copy}: its weights are not those that the run" in said
    train(warm, corpus, run_dir, allow_change="[objective]", stop_after=2, **changes)


def test_a_copy_of_the_teacher_agrees_with_it_and_costs_a_third_more(
    folder, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: (1e12, "of the test"))
    same = SHORT | {"init_from": folder, "model__hidden_size": 96, "model__sliding_window": None}
    found = {}
    for name, changes in (("plain", {}), ("taught", DISTILL | {"objective__teacher": folder})):
        run_dir = tmp_path / name
        config = settings(corpus.folder, run_dir, **same | changes, stop_after=1)
        processes = start("cpu")
        try:
            run = prepare(config, processes)
            one = trainer.Trainer(config, processes, run, BadSteps(config.health, 1))
            one.hooks = [RunFiles(run_dir)]
            one.train()
        finally:
            dist.destroy_process_group()
        (found[name],) = records(run_dir)
    ours, theirs = found["taught"], found["plain"]
    assert abs(ours["kl"]) < 1e-6
    assert ours["agreement"] == 1
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    flops = [record["mfu"] * record["step_seconds"] for record in (ours, theirs)]
    assert flops[0] / flops[1] == pytest.approx(4 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"objective\.teacher=None: objective=distill needs either a t"),
        ({"teacher": "x", "top_k": 0}, r"objective\.top_k=0: expected more than 0"),
        ({"teacher": "x", "temperature": 0.0}, r"objective\.temperature=0\.0: expected more"),
        ({"teacher": "x", "weight": -1.0}, r"objective\.weight=-1\.0: expected more than 0"),
        ({"teacher": "x", "z_loss": -1.0}, r"objective\.z_loss=-1\.0: expected 0 or more"),
        ({"teacher": "x", "topk": 4}, r"objective\.topk=4: .*did you mean 'top_k'"),
    ],
)
def test_an_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_objective({"name": "distill", **options})


def checked(corpus, tmp_path, teacher, **changes):
    changes = {"objective": "distill", "objective__teacher": teacher} | changes
    config = settings(corpus.folder, tmp_path / "run", **changes)
    plan = StagePlan(config.recipe, corpus.edition_tokens("train"))
    check_objective(config, plan, corpus)


def test_a_teacher_is_refused(folder, corpus, tmp_path):
    checked(corpus, tmp_path, folder)
    for changes, message in (
        ({"parallel__cuda_graphs": "true"}, r"parallel\.cuda_graphs=true: not possible with obj"),
        ({"objective__top_k": 300}, r"objective\.top_k=300: expected at most 259, the vocabulary"),
        (
            {"parallel__tp": 8},
            rf"objective\.teacher={folder}: of this network, model\.num_\w+=\d+: expected a multi",
        ),
        (
            {"recipe__stages__long__seq_len": 512, "model__max_seq_len": 512},
            rf"objective\.teacher={folder}: it has 256 positions, too few for recipe\.stages\.long",
        ),
    ):
        with pytest.raises(InputError, match=message):
            checked(corpus, tmp_path, folder, **changes)
    with pytest.raises(InputError, match=r"objective\.teacher=/none: /none is neither a Hugging"):
        checked(corpus, tmp_path, "/none")


def test_another_tokenizer_is_refused_by_name(folder, corpus, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    byte_tokenizer(turned=True).save(str(copy / "tokenizer.json"))
    message = rf"teacher={copy}: {copy}/tokenizer\.json is not the tokenizer of .*Id 3 is"
    with pytest.raises(InputError, match=message):
        checked(corpus, tmp_path, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json does not exist, so the tokenizers"):
        checked(corpus, tmp_path, copy)


def test_an_unknown_family_is_refused_by_name(folder, corpus, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(about | {"model_type": "mamba"}))
    with pytest.raises(InputError, match=r"objective\.teacher=.*model_type=mamba: expected one of"):
        checked(corpus, tmp_path, copy)
