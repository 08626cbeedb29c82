"""`parallel.compile=auto`: compiled on GPUs, and on CPUs only where it pays."""

from __future__ import annotations

import pytest
import torch

from conf.errors import InputError
from conf.machine import Verdict
from data_pipeline.sampling.recipe import StagePlan
from pretrain.checks import Job, check_precision
from pretrain.config import ParallelConfig
from pretrain.planning import compile_choice
from pretrain.planning.compile_choice import choose_compile, decide, missing_compiler
from pretrain.processes import Processes
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig
from tests.runs import settings

PLAN = StagePlan(
    TrainingRecipeConfig("r", 2048, {"a": TrainingStageConfig(64, 20480)}), {"all": 10**9}
)
LONG = StagePlan(
    TrainingRecipeConfig("r", 2048, {"a": TrainingStageConfig(64, 10**12)}), {"all": 10**13}
)


@pytest.fixture
def choice(corpus, tmp_path, monkeypatch):
    """The choice on a machine that has a compiler, and multiplies bf16 at 1 TFLOP/s."""
    monkeypatch.setattr(compile_choice, "missing_compiler", lambda device: None)
    monkeypatch.setattr(compile_choice, "processor", lambda device: None)
    monkeypatch.setattr(compile_choice, "bf16_verdict", lambda found: Verdict(True, "has bf16"))
    monkeypatch.setattr(compile_choice, "peak_flops", lambda device, dtype: (1e12, "of the test"))

    def choose(plan=PLAN, device="cpu", before=None, **changes):
        config = settings(corpus.folder, tmp_path, **changes)
        return choose_compile(config, plan, Processes(torch.device(device), 0, 1), before)

    return choose


@pytest.mark.slow
def test_gpus_compile_and_short_runs_on_cpus_do_not(choice, monkeypatch):
    assert choice(device="cuda", precision="bf16")[0] is True
    assert choice(device="cuda", precision="fp32")[0] is True
    assert choice(precision="bf16") == (
        False,
        "parallel.compile=auto does not compile: "
        "compiling would save 0 s of about 0 s and take 80 s.",
    )
    assert choice(LONG, precision="bf16")[0] is True
    assert choice(LONG, precision="bf16", stop_after=10)[0] is False
    assert choice(LONG, precision="fp32")[0] is False
    monkeypatch.setattr(compile_choice, "bf16_verdict", lambda found: Verdict(False, "has none"))
    assert choice(LONG, precision="bf16") == (
        False,
        "parallel.compile=auto does not compile: has none.",
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_compiled_without_a_compiler(choice, device, monkeypatch):
    monkeypatch.undo()
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    said = missing_compiler(device)
    assert said is not None
    monkeypatch.setattr(compile_choice, "missing_compiler", lambda device: said)
    assert choice(LONG, device, precision="bf16") == (
        False,
        f"parallel.compile=auto does not compile: {said}.",
    )


def test_a_resumed_run_keeps_its_choice(choice):
    assert choice(LONG, precision="bf16", before=False)[0] is False
    assert choice(precision="bf16", before=True) == (
        True,
        "parallel.compile=auto keeps true, the value at the run's last start.",
    )
    # A run in bf16 without compilation does not continue without it in fp8.
    assert choice(device="cuda", precision="bf16", before=False)[0] is False
    assert choice(device="cuda", precision="fp8", before=False)[0] is True


def test_every_sequence_length_has_to_earn_its_compiling():
    assert decide(400.0, 1)[0] is True
    assert decide(400.0, 2)[0] is False
    assert decide(300.0, 1)[0] is False


@pytest.mark.parametrize("compiled", ["auto", True])
def test_fp8_is_compiled_or_refused(corpus, tmp_path, compiled):
    config = settings(corpus.folder, tmp_path, precision="fp8")
    gpus = Job(8, "cuda", here=False)
    config.parallel = ParallelConfig(compile=compiled)
    check_precision(config, PLAN, 8, gpus)
    config.parallel = ParallelConfig(compile=False)
    with pytest.raises(InputError, match=r"parallel.compile=false with precision=fp8: uncompiled"):
        check_precision(config, PLAN, 8, gpus)
    check_precision(config, PLAN, 1, Job(1, "cpu", here=False))  # emulated, for tests


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compile": "yes"}, "parallel.compile=yes: expected auto, true or false"),
        (
            {"micro_batch_tokens": 0},
            "parallel.micro_batch_tokens=0: expected auto, or a number of tokens",
        ),
        (
            {"micro_batch_tokens": "all"},
            "parallel.micro_batch_tokens=all: expected auto, or a number",
        ),
        (
            {"micro_batch_tokens": 0.5},
            "parallel.micro_batch_tokens=0.5: expected auto, or a number",
        ),
    ],
)
def test_what_is_neither_auto_nor_a_choice_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        ParallelConfig(**change)
