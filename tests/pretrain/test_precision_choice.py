"""`precision=auto` in a run: what it becomes on all ranks, and what a resumed run keeps."""

import json
import mmap
import os

import pytest
import torch
import yaml

from conf.machine import fitting_precision, processor
from pretrain.hardware import data_sheet, environment, memory_peak_bytes, reset_memory_peak
from pretrain.precision_choice import Report, decide
from tests.runs import arguments, records

AVX2 = "this CPU has no bf16 units (AVX2 at best)"
YES, NO = (Report(True, "this CPU has avx512_bf16", None, ""), Report(False, AVX2, None, ""))


def kept(report: Report, precision: str) -> Report:
    return Report(report.native, report.reason, precision, "")


def test_a_new_run_takes_what_every_rank_multiplies():
    assert decide("auto", [YES, YES]) == (
        "bf16",
        "precision=auto selects bf16: this CPU has avx512_bf16.",
    )
    assert decide("auto", [NO]) == ("fp32", f"precision=auto selects fp32: {AVX2}.")
    assert decide("auto", [YES, NO]) == ("fp32", f"precision=auto selects fp32: on rank 1, {AVX2}.")


def test_what_is_given_by_name_is_taken():
    for precision in ("fp32", "bf16", "fp8"):
        assert decide(precision, [NO, YES]) == (precision, "")


@pytest.mark.parametrize("made_with", ["bf16", "fp8", "fp32"])
def test_a_resumed_run_keeps_what_it_was_made_with(made_with):
    for report in (YES, NO):
        precision, reason = decide("auto", [kept(report, made_with), report])
        assert precision == made_with
        assert reason.startswith(
            f"precision=auto keeps {made_with}, the precision at the run's last start"
        )
        other = report.native == (made_with == "fp32")
        assert ("but a new run on these machines would use" in reason) == other


def run(command, corpus, run_dir, *, processes=0, **settings):
    settings = {"precision": "auto", "stop_after": 5} | settings
    environment = {k: settings.pop(k) for k in list(settings) if k.isupper()}
    done = command(
        *arguments(corpus.folder, run_dir, **settings), processes=processes, **environment
    )
    assert done.returncode in (0, 85), done.stderr
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    env = json.loads((run_dir / "env.json").read_text())
    assert config["precision"] == env["precision"]
    return config["precision"], done.stdout


def test_the_run_folder_states_what_auto_became(command, corpus, tmp_path):
    precision, said = run(command, corpus, tmp_path / "run", processes=2)
    assert precision == fitting_precision(processor("cpu"))
    assert f"precision=auto selects {precision}" in said
    manifest = json.loads(
        (tmp_path / "run" / "checkpoints" / "step_5" / "manifest.json").read_text()
    )
    assert manifest["precision"] == precision
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["precision_reason"] in said


def test_a_run_moves_to_a_machine_that_multiplies_other_types(command, corpus, tmp_path):
    """The same command in both directions, where oneDNN's switch makes another machine of this."""
    folder = tmp_path / "run"
    precision, said = run(command, corpus, folder, ONEDNN_MAX_CPU_ISA="AVX2")
    assert precision == "fp32"
    assert "precision=auto selects fp32: " in said
    precision, said = run(command, corpus, folder, stop_after=8)
    assert precision == "fp32"
    assert "precision=auto keeps fp32, the precision at the run's last start" in said
    here = fitting_precision(processor("cpu"))
    assert ("but a new run on these machines would use bf16" in said) == (here == "bf16")
    assert [r["step"] for r in records(folder)] == list(range(1, 9))

    # Another precision by name is still a change that has to be allowed.
    (folder / "config.yaml").unlink()  # as where the folder was filled from an object store
    assert run(command, corpus, folder, stop_after=9)[0] == "fp32"


def test_bf16_by_name_is_warned_of_where_it_is_slow(command, corpus, tmp_path):
    settings = {"precision": "bf16", "stop_after": 1, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    precision, said = run(command, corpus, tmp_path / "run", **settings)
    assert precision == "bf16"
    assert "warning: precision=bf16: " in said
    assert "times slower than in float32 (measured: " in said


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", (989.4e12, 1978.9e12)),
        ("NVIDIA H100 PCIe", (756.5e12, 1513e12)),
        ("NVIDIA H100 NVL", (835.5e12, 1671e12)),
        ("NVIDIA H200", (989.4e12, 1978.9e12)),
        ("NVIDIA H200 NVL", (835.5e12, 1671e12)),
        ("NVIDIA H20", (148e12, 296e12)),
        ("NVIDIA GH200 480GB", (989.4e12, 1978.9e12)),
        ("NVIDIA B200", (2250e12, 4500e12)),
        ("NVIDIA GB200", (2500e12, 5000e12)),
        ("NVIDIA A100-SXM4-80GB", (312e12, 0.0)),
        ("NVIDIA A100 80GB PCIe", (312e12, 0.0)),
        ("NVIDIA L40S", (362e12, 733e12)),
        ("NVIDIA L40", (181e12, 362e12)),
        ("NVIDIA L4", (121e12, 242e12)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A1000", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_those_of_the_exact_gpu(name, peaks):
    assert data_sheet(name) == peaks


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel cannot reset a peak"
)
def test_the_memory_peak_begins_with_the_training():
    cpu = torch.device("cpu")
    with mmap.mmap(-1, 128 << 20) as used:  # an allocator may keep what is freed, the kernel not
        used.write(b"\1" * len(used))
        before = memory_peak_bytes(cpu)
    reset_memory_peak(cpu)
    assert memory_peak_bytes(cpu) < before - (64 << 20)


def test_the_environment_of_a_machine_without_some_packages(monkeypatch):
    monkeypatch.setattr("pretrain.hardware.PACKAGES", ("torch", "no-such-package"))
    about = environment(torch.device("cpu"), 1)
    assert list(about["packages"]) == ["torch"]
