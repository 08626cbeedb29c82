"""The files and tables of the GPU session, from figures like those of a session."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_session
from benchmarks.gpu import page
from benchmarks.gpu.kit import names_in
from benchmarks.gpu.models import kernel_figures
from launch.plan.calibration import Calibration
from tests.conftest import ROOT

RUN = {
    "model": {
        "name": "one",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "max_seq_len": 128,
    },
    "seq_len": 128,
    "precision": "bf16",
    "batch_tokens": 512,
    "tokens_per_second": 1000.0,
}
MEMORY = {"checkpointing": "none", "compiled": True, "activation_ratio": 0.8}
PARTS = {
    "ceilings": {"rows": [{"name": "machine", "gpu": "H200", "torch": "2.11.0"}], "seconds": 2.0},
    "attention numbers": {
        "rows": [
            {"name": "sdpa", "ok": True, "q_error": 0.004},
            {"name": "flex", "ok": False, "q_error": float("nan")},
            {"name": "varlen", "failed": "killed at the limit of 30 s"},
        ],
        "failed": "killed at the limit of 60 s",
        "seconds": 60.0,
    },
    "danube": {
        "rows": [
            {"name": "bf16", "run": RUN, "mfu": 0.5, "tokens_per_second": 1000.0} | MEMORY,
            {"name": "fp8", "failed": "OutOfMemoryError"},
        ],
        "seconds": 70.0,
    },
    "launches": {
        "rows": [{"name": "b", "precision": "bf16", "compiled": True, "layer_seconds": 0.001}],
        "seconds": 9.0,
    },
}


def test_the_order_is_numbers_first_then_speed():
    names = [part.name for part in gpu_session.PARTS]
    assert names.index("training") < names.index("attention speed") < names.index("danube")
    assert all(part.item_seconds <= part.seconds for part in gpu_session.PARTS)
    first = sum(part.seconds for part in gpu_session.PARTS[: names.index("shapes")])
    assert first <= gpu_session.SECONDS + 60  # limits: most parts end before theirs


def test_the_three_files(tmp_path):
    gpu_session.write(tmp_path, {"parts": PARTS})
    assert gpu_session.read(tmp_path)["parts"].keys() == PARTS.keys()
    text = (tmp_path / "session.md").read_text()
    assert "Machine: gpu H200, torch 2.11.0." in text
    assert "| attention numbers | 3 | 2; the part: killed at the limit of 60 s | 60 |" in text
    assert "| sdpa | right | 0.004 |" in text
    assert "| flex | **wrong** | nan |" in text
    assert "| varlen (failed: killed at the limit of 30 s) |" in text
    assert "| bf16 | 50.0% | 1,000 |" in text
    found = Calibration.read(tmp_path / "calibration.json")
    assert [run["mfu"] for run in found.runs] == [0.5]
    assert found.activation_ratios(compiled=True) == {"none": 0.8}
    assert found.launches[0]["layer_seconds"] == 0.001
    assert json.loads((tmp_path / "calibration.json").read_text())["gpu"] == "H200"


def test_the_page_has_a_part_for_the_figures(tmp_path):
    copy = tmp_path / "gpu.md"
    copy.write_text((ROOT / "docs/gpu.md").read_text())
    page.update_page(copy, "new figures")
    before, after = (ROOT / "docs/gpu.md").read_text(), copy.read_text()
    assert after.partition(page.BEGIN)[0] == before.partition(page.BEGIN)[0]
    assert after.partition(page.BEGIN)[2] == f"\n\nnew figures\n\n{page.END}\n"
    copy.write_text("no markers")
    with pytest.raises(ValueError, match="has no part between"):
        page.update_page(copy, "new figures")


def test_gaps_and_shares_of_kernels():
    """Two steps: 'a' and 'b' overlap, and 2 of 10 us are without a kernel."""
    found = kernel_figures([("a", 0, 4), ("b", 2, 6), ("a", 8, 9), ("b", 9, 10)])
    assert (found["kernels"], found["busy_seconds"]) == (2, 4e-6)
    assert found["gap_share"] == pytest.approx(0.2)
    assert [(one["kernel"], one["count"]) for one in found["top"]] == [("a", 1), ("b", 1)]
    assert kernel_figures([]) == {"kernels": 0}


def test_names_of_packages(tmp_path):
    listed = tmp_path / "there.txt"
    listed.write_text("# a machine\nPackage    Version\nHydra_Core 1.3\nnumpy==2.5.2\n\n")
    assert names_in(listed) == {"package", "hydra-core", "numpy"}
