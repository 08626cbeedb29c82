"""Commands other than training take the GPU and describe it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from conf.machine import fitting_dtype, fp16_verdict, processor
from eval.devices import resolve_device
from finetune.config import SftConfig
from finetune.precision import agree_on_precision, uses_cpu
from launch.local import check, gpus
from model.attention.backends import usable_backends
from pretrain.planning.auto import memory_per_process
from tests.hollow import harness

GPU = torch.device("cuda", 0)


def test_the_doctor_describes_the_gpu(command):
    done = command("launch", "doctor")
    assert done.returncode == 0, done.stderr
    assert "device=auto selects the GPU" in done.stdout
    assert "NVIDIA H200" in done.stdout


def test_a_run_on_this_machine_is_checked_against_its_gpu(corpus, tmp_path):
    assert gpus() == 1
    check(harness.small_run(corpus.folder, tmp_path / "run"), 1)
    assert memory_per_process(GPU, 1) > 100 << 30


def test_evaluation_and_tuning_take_the_gpu(tmp_path):
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    config: Any = SimpleNamespace(device="auto", precision="auto")
    assert not uses_cpu(config)
    assert agree_on_precision(config, tmp_path, 1, True) == "bf16"


def test_fp16_is_computed_as_it_is_stored():
    found = processor("cuda")
    assert fp16_verdict(found).native
    assert fitting_dtype("float16", found) == "float16"


def test_a_cluster_is_planned_and_its_job_written(command, tmp_path):
    done = command("launch", "plan", "cluster=h100", "nodes=4")
    assert done.returncode == 0, done.stderr
    assert "GPU-hours" in done.stdout
    given = ("cluster=h100", "nodes=4", "--dry-run", "--", f"run_dir={tmp_path / 'run'}")
    done = command("launch", "slurm", *given, "model=danube_1_8b")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gpus-per-node=8" in done.stdout


def test_the_settings_of_tuning_take_a_gpu():
    assert SftConfig(device="cuda").device == "cuda"


def test_torchs_own_attention_is_usable():
    assert {"sdpa", "cudnn", "varlen", "flex"} <= set(usable_backends(GPU, torch.bfloat16))
