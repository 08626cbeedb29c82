"""`python -m launch doctor`: facts, advice, and that it ends well whatever is missing."""

import copy
import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from conf.machine import fitting_precision, processor
from conf.text import GIB
from launch.doctor.advice import NEEDED_BY, advice, compare_speeds, missing_lines
from launch.doctor.command import report_lines
from launch.doctor.facts import NAME, collect, interfaces, missing, space

HEALTHY: dict[str, Any] = {
    "system": {"platform": "Linux", "python": "3.11.7"},
    "cpu": {
        "name": "AMD EPYC",
        "cores": 4,
        "usable_cores": 4,
        "threads": 4,
        "features": ["avx2", "avx512_bf16"],
        "torch_kernels": "AVX512",
        "onednn": True,
    },
    "gpus": [],
    "gpu_driver": False,
    "device": "cpu",
    "precision": {"auto": "bf16", "reason": "this CPU has avx512_bf16", "fp8": False},
    "speed": {
        "float32": {"flops_per_second": 1e11, "size": 512},
        "bfloat16": {"flops_per_second": 4e11, "size": 1024},
    },
    "memory": {"available": 8 * GIB, "total": 16 * GIB},
    "disk": {
        "here": {"path": "/home", "total": 100 * GIB, "free": 50 * GIB},
        "temporary": {"path": "/tmp", "total": 100 * GIB, "free": 50 * GIB},
    },
    "shared_memory": {"path": "/dev/shm", "total": 8 * GIB, "free": 8 * GIB},
    "open_files": {"soft": 65536, "hard": 65536},
    "interfaces": [{"name": "eth0", "state": "up", "mbit_per_second": 10000}],
    "infiniband": [],
    "variables": {},
    "programs": {"git": True, "g++": True, "clang++": False},
    "versions": {"torch": "2.13.0", "cuda": "none (CPU build)"},
    "missing": {},
}
GPU = {"name": "NVIDIA H200", "capability": "9.0", "memory": 139 * GIB}


def facts(**changes):
    """A healthy machine, with changes by `part__key`."""
    found = copy.deepcopy(HEALTHY)
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            found[part][name] = value
        else:
            found[part] = value
    return found


def test_a_healthy_machine_gets_no_advice():
    assert list(advice(HEALTHY)) == []
    text = [line for _, line in report_lines(HEALTHY)]
    assert "precision=auto selects bf16: this CPU has avx512_bf16" in text
    assert "float32: 100.0 GFLOP/s (512 x 512)" in text
    assert "bfloat16 is 4.0 times as fast" in text
    assert "eth0 up, 10,000 Mbit/s" in text
    assert text[-2:] == ["nothing", "none"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gpu_driver": True},
            "CUDA version of this torch: none (CPU build).",
        ),
        ({"variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, "ONEDNN_MAX_CPU_ISA=AVX2 slows"),
        ({"cpu__onednn": False}, "lacks oneDNN"),
        ({"cpu__threads": 1}, "torch uses 1 of 4 cores"),
        ({"shared_memory__total": GIB // 16}, "/dev/shm has 0.06 GiB, but 1 GiB or more"),
        ({"open_files": {"soft": 1024, "hard": 8192}}, "ulimit -n 8192"),
        ({"open_files": {"soft": 1024, "hard": -1}}, "ulimit -n 65536"),
        ({"disk__here": {"path": "/x", "total": 1, "free": GIB}}, "/x has only 1.0 GiB free"),
        ({"programs__g++": False}, "No C++ compiler"),
    ],
)
def test_each_fault_has_its_sentence(changes, said):
    [found] = advice(facts(**changes))
    assert said in found


def test_what_the_system_does_not_say_is_no_fault():
    assert list(advice(facts(shared_memory=None, open_files={"soft": -1, "hard": -1}))) == []
    assert ("shared memory", "does not exist") in list(report_lines(facts(shared_memory=None)))


def test_a_gpu_is_described():
    found = facts(gpus=[GPU], gpu_driver=True, device="cuda", precision__fp8=True)
    text = [line for _, line in report_lines(found)]
    assert "NVIDIA H200, compute capability 9.0, 139 GiB" in text
    assert "precision=fp8 is supported" in text


def test_a_slow_type_is_said_to_be_slow():
    speed = copy.deepcopy(HEALTHY["speed"])
    speed["bfloat16"]["flops_per_second"] = 1e8
    assert compare_speeds(speed) == "bfloat16 is 1,000 times slower"
    assert compare_speeds({}) == ""


def test_missing_packages_are_named_by_what_needs_them():
    asked = [
        Requirement("torch<2.16,>=2.11"),
        Requirement("tokenizers>=0.21"),
        Requirement('trl>=1.16; extra == "finetune"'),
        Requirement('flash-attn>=2.8; extra == "cuda"'),
    ]
    found = missing(asked, {"torch": "2.9.0", "tokenizers": "0.23.3"})
    assert found == {
        "base": ["torch<2.16,>=2.11 (found 2.9.0)"],
        "finetune": ["trl"],
        "cuda": ["flash-attn"],
    }
    said = list(missing_lines(found, []))
    assert said[0].startswith("every command: torch")
    assert said[1] == 'finetune sft, dpo: trl (pip install -c constraints.txt -e ".[finetune]")'
    assert len(said) == 2  # what is for GPUs is of no use here
    assert len(list(missing_lines(found, [GPU]))) == 3
    assert missing(asked[:1], {"torch": "2.13.0+cpu"}) == {}


def test_interfaces_are_read_where_the_driver_says_no_speed(tmp_path: Path):
    for name, state, speed in (("eth0", "up", "10000"), ("wlan0", "up", "-1"), ("lo", "", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(f"{state}\n")
        if speed is not None:
            (tmp_path / name / "speed").write_text(f"{speed}\n")
    found = {one["name"]: one["mbit_per_second"] for one in interfaces(tmp_path)}
    assert found == {"eth0": 10000, "wlan0": None, "lo": None}
    assert interfaces(tmp_path / "nowhere")  # the names alone
    assert space("/nowhere") is None


def test_this_machine(command):
    found = collect("cpu", measure=False)
    assert json.loads(json.dumps(found)) == found
    assert found["precision"]["auto"] == fitting_precision(processor("cpu"))
    assert found["versions"]["torch"]
    assert list(report_lines(found))
    done = command("launch", "doctor", "json=true", ONEDNN_MAX_CPU_ISA="AVX2")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["precision"]["auto"] == "fp32"
    assert said["speed"]["float32"]["flops_per_second"] > 0
    assert any("ONEDNN_MAX_CPU_ISA=AVX2 slows" in text for text in said["advice"])
    done = command("launch", "doctor", "measure=false", "device=cpu")
    assert done.returncode == 0
    assert "precision=auto selects" in done.stdout
    assert "matrix speed" not in done.stdout


def test_the_facts_of_a_gpu(monkeypatch):
    about = SimpleNamespace(major=9, minor=0, name="NVIDIA H200", total_memory=139 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: about.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    found = collect("cuda", measure=False)
    assert found["gpus"] == [GPU]
    assert found["precision"]["auto"] == "bf16"
    assert found["precision"]["fp8"] is True
    text = [line for _, line in report_lines(found)]
    assert "device=auto selects the GPU" in text
    assert found["cpu"]["features"] == collect("cpu", measure=False)["cpu"]["features"]


def test_every_extra_says_what_it_is_for():
    extras = set(metadata.metadata(NAME).get_all("Provides-Extra") or [])
    assert extras - {"train"} == set(NEEDED_BY) - {"base"}
