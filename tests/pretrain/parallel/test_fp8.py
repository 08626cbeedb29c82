"""fp8 (in torchao's emulation on the CPU) trains like bf16."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conf.errors import InputError
from pretrain.fp8_checks import check_fp8_package, check_fp8_sides
from tests.conftest import ROOT
from tests.model.shapes import tiny
from tests.patience import limit
from tests.runs import arguments, records


@pytest.fixture(scope="module")
def runs(command, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    for precision in ("bf16", "fp8"):
        done = command(*arguments(corpus.folder, folder / precision, precision=precision))
        assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_loss_is_within_one_percent_of_bf16(runs):
    for kind in ("train", "validation"):
        ours, theirs = records(runs / "fp8", kind), records(runs / "bf16", kind)
        losses = [r["loss"] for r in ours]
        assert losses != [r["loss"] for r in theirs]
        assert losses == pytest.approx([r["loss"] for r in theirs], rel=0.03)
        assert losses[-1] == pytest.approx(theirs[-1]["loss"], rel=0.01)
        assert losses[-1] < losses[0] - 1.5


def test_tensor_parallel_ranks_scale_their_own_shards(runs, command, corpus, tmp_path):
    """The scales differ from those of whole matrices, and the loss hardly."""
    changes = {"precision": "fp8", "parallel__tp": 2, "stop_after": 10}
    done = command(*arguments(corpus.folder, tmp_path / "run", **changes), processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = ([r["loss"] for r in records(path)] for path in (tmp_path / "run", runs / "fp8"))
    assert ours != theirs[:10]
    assert ours == pytest.approx(theirs[:10], rel=0.02)


def test_the_run_folder_names_the_linears_in_fp8(runs):
    env = {p: json.loads((runs / p / "env.json").read_text()) for p in ("bf16", "fp8")}
    assert env["bf16"]["fp8_linears"] == []
    assert len(env["fp8"]["fp8_linears"]) == 2 * 7
    assert "layers.1.mlp.down_proj" in env["fp8"]["fp8_linears"]


@pytest.mark.slow
def test_torchao_is_imported_only_for_fp8():
    code = (
        "import sys, torch, pretrain.train, pretrain.parallel\n"
        "from model.network import build_meta\n"
        "from pretrain.parallel.fp8 import apply_fp8\n"
        "from tests.model.shapes import tiny\n"
        "model, cpu = build_meta(tiny()), torch.device('cpu')\n"
        "apply_fp8(model, 'bf16', cpu)\n"
        "assert 'torchao' not in sys.modules\n"
        "apply_fp8(model, 'fp8', cpu)\n"
        "assert 'torchao' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=limit(120)
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "tp", "cp", "tokens", "sentence"),
    [
        ({"intermediate_size": 100}, 1, 1, 64, "intermediate_size=100 is not a multiple of 16."),
        ({"hidden_size": 40}, 1, 1, 64, "model.hidden_size=40 is not a multiple of 16."),
        (
            {"intermediate_size": 48},
            2,
            1,
            64,
            "=48 is not a multiple of 16 x parallel.tp=2",
        ),
        ({"head_dim": 4}, 1, 1, 64, r"num_kv_heads \* head_dim=8 is not a multiple of 16."),
        ({}, 1, 1, 40, "tokens per micro-batch=40 is not a multiple of 16."),
        ({}, 1, 2, 48, "micro-batch=48 is not a multiple of 16 x parallel.cp=2"),
    ],
)
def test_sides_that_fp8_cannot_multiply_are_refused(changes, tp, cp, tokens, sentence):
    model = tiny(**{"hidden_size": 64, "intermediate_size": 96, "head_dim": 16} | changes)
    with pytest.raises(InputError, match=sentence):
        check_fp8_sides("fp8", model, tp, cp, tokens)


def test_without_torchao_fp8_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="precision=fp8_rowwise: requires the package torchao"):
        check_fp8_package("fp8_rowwise")
