"""`launch` refuses what `pretrain` refuses, before it starts or queues anything.

The sentence is the same, the exit code is 2, and nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from conf.errors import InputError
from launch import local
from launch.slurm.check import check_job
from launch.slurm.settings import Cluster, SlurmConfig, SlurmSettings
from launch.training import Training
from launch.ui.commands import BackgroundCommands, Form, train
from pretrain.checks import Job
from pretrain.config import device_of
from pretrain.preflight import preflight, train_tokens
from pretrain.recipe import TrainingRecipeConfig
from tests.pretrain.test_bad_input import CASES
from tests.runs import arguments, settings

CPUS = Cluster("cpus", 2, "cpu", 0, SlurmSettings())
GPUS = Cluster("gpus", 8, "cuda", 80, SlurmSettings())
SMALL = replace(CPUS, gpu_memory_gib=0.001)
COMPOSING = ("unknown key", "wrong type", "unknown choice")


def a_run(config):
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    return Training([], text, config.name, Path(config.run_dir))


@pytest.mark.parametrize("case", [case for case in CASES if case not in COMPOSING])
def test_the_sentence_of_pretrain(case, corpus, tmp_path):
    changes, sentence = CASES[case]
    with pytest.raises(InputError) as refused:
        local.check(settings(corpus.folder, tmp_path / "run", **changes), 1)
    assert sentence in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cluster", "changes", "sentence"),
    [
        (CPUS, {"data__folder": "nowhere"}, None),
        (CPUS, {"data__folder": "s3://nowhere/corpus"}, None),
        (CPUS, {"init_from": "nowhere"}, None),
        (CPUS, {"model__vocab_size": 128}, "model.vocab_size=128: expected 259 or more"),
        (CPUS, {"data__folder": "nowhere", "parallel__tp": 8}, "the number of processes, 4"),
        (CPUS, {"device": "cuda"}, "device=cuda: torch finds no CUDA device"),
        (CPUS, {"device": "auto", "profile__memory": "true"}, "but the run is on cpu"),
        (GPUS, {"device": "auto", "profile__memory": "true"}, None),
        (GPUS, {"profile__memory": "true"}, "but the run is on cpu"),
        (GPUS, {"device": "auto", "precision": "fp8", "parallel__attention": "flex"}, None),
        (CPUS, {"profile__ranks": "[3]"}, None),
        (CPUS, {"profile__ranks": "[4]"}, "rank 4. Use ranks from 0 to 3"),
        (
            CPUS,
            {"parallel__attention": "flex"},
            "attention=flex: the installed packages do not support",
        ),
        (
            CPUS,
            {"evaluation__tasks": "[local]"},
            "evaluation.tasks=local: requires evaluation.task_folder",
        ),
        (SMALL, {"parallel": "auto"}, "no layout fits into memory"),
    ],
)
def test_a_job_is_held_against_its_own_ranks_and_devices(
    cluster, changes, sentence, corpus, tmp_path
):
    more = {"parallel__micro_batch_tokens": 128} if cluster is GPUS else {}
    run = a_run(settings(corpus.folder, tmp_path / "run", **(more | changes)))
    job = SlurmConfig(cluster="any", nodes=2)
    if sentence is None:
        check_job(job, cluster, run)
        return
    with pytest.raises(InputError) as refused:
        check_job(job, cluster, run)
    assert sentence in str(refused.value)


def test_every_number_of_nodes_that_a_job_may_start_with_counts(corpus, tmp_path):
    run = a_run(settings(corpus.folder, tmp_path / "run", parallel__dp_replicate=4))
    check_job(SlurmConfig(cluster="any", nodes=2), CPUS, run)
    with pytest.raises(
        InputError,
        match=r"min_nodes=1: with nodes=1, parallel: .* does not match the number of processes, 2",
    ):
        check_job(SlurmConfig(cluster="any", nodes=2, min_nodes=1), CPUS, run)


def test_packages_of_a_container_are_not_looked_for_here(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = a_run(settings(corpus.folder, tmp_path / "run", precision="fp8"))
    inside = replace(CPUS, slurm=SlurmSettings(container="/images/torch.sqsh"))
    check_job(SlurmConfig(cluster="any"), inside, run)
    with pytest.raises(InputError, match="requires the package torchao"):
        check_job(SlurmConfig(cluster="any"), CPUS, run)


def test_a_run_that_was_begun_otherwise_or_stopped(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=5))
    assert done.returncode == 0, done.stderr
    local.check(settings(corpus.folder, run_dir), 2)
    for changes, sentence in (
        ({"seed": 1}, "was trained in another order of samples"),
        ({"model__num_layers": 3}, "model.num_layers=3: "),
        ({"optim__weight_decay": 0.2}, "was started with other settings (optim.weight_decay was"),
    ):
        with pytest.raises(InputError) as refused:
            local.check(settings(corpus.folder, run_dir, **changes), 1)
        assert sentence in str(refused.value)
    (run_dir / "STOP").touch()
    with pytest.raises(InputError, match="STOP exists"):
        local.check(settings(corpus.folder, run_dir), 1)


def test_the_layout_that_is_picked_is_left_to_the_run(corpus, tmp_path):
    config = settings(corpus.folder, tmp_path / "run", parallel="auto")
    preflight(config, Job(2, "cpu", ranks_per_node=2, memory_bytes=8 << 30))
    assert config.parallel.auto
    assert config.parallel.dp_shard == -1


def test_the_device_of_a_run():
    assert device_of("auto", "cuda") == device_of("cuda", "cuda") == "cuda"
    assert device_of("auto", "cpu") == device_of("cpu", "cuda") == "cpu"


def test_sources_without_a_corpus_are_endless():
    stages = {"a": {"seq_len": 64, "tokens": 128, "mixture": {"web": 1.0}}}
    stated = {"name": "r", "global_batch_tokens": 64, "stages": stages}
    recipe: Any = OmegaConf.to_object(OmegaConf.merge(TrainingRecipeConfig, stated))
    assert list(train_tokens(recipe, None)) == ["web"]


def test_no_launcher_starts_or_writes_what_pretrain_refuses(command, corpus, tmp_path):
    cluster = tmp_path / "ours.yaml"
    cluster.write_text("name: ours\ndevice: cpu\ngpus_per_node: 2\n")
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, parallel__dp_replicate=3)[1:]
    refused = "dp_replicate=3 x dp_shard=-1 x cp=1 x tp=1 does not match the number of processes,"
    where = (f"cluster={cluster}", "nodes=2")
    fed = ("name=x", f"data={corpus.folder}", f"out={tmp_path / 'chain'}")
    in_chain = [part for part in training if not part.startswith(("name", "run_dir", "data."))]
    for given, said in (
        (("local", "nproc=2", "--", *training), f"error: parallel: {refused} 2. Change"),
        (("slurm", *where, "--", *training), f"error: parallel: {refused} 4. Change"),
        (
            ("slurm", *where, "--", "--multirun", *training, "seed=0,1"),
            f"error: run-seed_0: parallel: {refused} 4",
        ),
        (
            ("chain", *where, *fed, "only=[pretrain]", "--", *in_chain),
            f"step pretrain: parallel: {refused} 4",
        ),
    ):
        done = command("launch", *given)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [cluster]


@pytest.mark.slow
def test_the_page_refuses_before_it_starts(corpus, tmp_path):
    form = Form(
        *("mine", "demo_12m", "demo", "adamw_demo", str(corpus.folder), 2, "laptop", tmp_path),
        more="parallel.tp=4",
    )
    stopped = tmp_path / "mine" / "STOP"
    stopped.parent.mkdir()
    stopped.touch()
    started = BackgroundCommands()
    with pytest.raises(InputError, match=r"tp=4 does not match the number of processes, 2"):
        train(started, form)
    assert stopped.exists()
    assert not started.processes
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "STOP"]


def test_what_only_the_run_can_refuse_ends_with_its_code(command, damaged, tmp_path):
    path = damaged / "train" / "prose-00001.bin"
    path.write_bytes(path.read_bytes()[:-10])
    training = arguments(damaged, tmp_path / "run")[1:]
    done = command("launch", "local", "nproc=1", "--", *training)
    assert done.returncode == 2, done.stderr
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["code"] == 2
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ended with code 2: ")
    assert "prose-00001.bin has" in last
