"""The GPU benchmark runs without a GPU, and the sides of a comparison do the same work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from benchmarks.cpu_training import batches
from benchmarks.sides import SIDES, Work, missing
from launch.plan.calibration import Calibration
from tests.conftest import ROOT
from tests.model.shapes import tiny
from tests.patience import limit


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_on_a_cpu(tmp_path):
    out = tmp_path / "figures.json"
    script = [sys.executable, str(ROOT / "benchmarks/gpu_training.py"), "--device", "cpu", "--tiny"]
    cases = ["--cases", "ours: danube3_4b, 2048, bf16", "--out", str(out)]
    done = subprocess.run([*script, *cases], capture_output=True, text=True, timeout=limit(120))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["cases"]
    assert [case["precision"] for case in found] == ["bf16"]
    for case in found:
        assert case["tokens_per_second"] > 0
        assert case["losses"][1] < case["losses"][0]
    (run,) = Calibration.read(out).runs  # of the shape that was trained
    assert (run["seq_len"], run["batch_tokens"], run["model"]["num_layers"]) == (128, 512, 2)
    table = out.with_suffix(".md").read_text()
    assert table.count("| ours: danube3_4b, 2048") == 1


@pytest.mark.slow
@pytest.mark.parametrize("side", ["transformers", "nanogpt", "litgpt"])
def test_a_peer_does_the_work_that_we_do(side):
    if package := missing(side):
        pytest.skip(f"no package {package} here")
    work = Work(tiny(vocab_size=8192, max_seq_len=512), 2, 64, precision="fp32")
    stream = batches()
    tokens, labels = (part[:2, :64].contiguous() for part in next(stream))
    try:
        first = torch.stack([SIDES[name](work)(tokens, labels) for name in ("ours", side)])
    finally:
        dist.destroy_process_group()
    assert first[0].item() == pytest.approx(first[1].item(), rel=1e-5)
