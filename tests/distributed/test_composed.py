"""fp8 and activation checkpointing compose with tensor parallelism and FSDP."""

from __future__ import annotations

import json

import pytest

from tests.distributed.composed import CASES, MODEL


@pytest.fixture(scope="module")
def results(command, tmp_path_factory):
    found = {}
    for processes, tp in ((0, 1), (4, 2)):
        out = tmp_path_factory.mktemp("composed") / "results.json"
        done = command("tests.distributed.composed", str(out), str(tp), processes=processes)
        assert done.returncode == 0, done.stderr
        found[tp] = json.loads(out.read_text())
    return found


def test_all_linears_of_the_blocks_and_no_others_are_in_fp8(results):
    linears = [f"self_attn.{name}_proj" for name in "qkvo"]
    linears += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    expected = sorted(f"layers.{i}.{name}" for i in range(MODEL.num_layers) for name in linears)
    for precision, mode in CASES:
        for of_layout in results.values():
            found = of_layout[f"{precision} {mode}"]
            assert sorted(found["fp8"]) == (expected if precision.startswith("fp8") else [])
            assert found["after"] == []


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_rowwise"])
def test_a_layout_gives_the_loss_and_gradients_of_one_process(precision, results):
    one, four = (results[tp][f"{precision} none"] for tp in (1, 2))
    assert four["loss"] == pytest.approx(one["loss"], rel=2e-3)
    for name, norm in one["gradients"].items():
        # The gradient of a key's bias is a sum over tokens that nearly cancel.
        tolerance = 0.4 if name.endswith("k_proj.bias") else 0.1
        assert four["gradients"][name] == pytest.approx(norm, rel=tolerance), name


def test_fp8_rounds_but_little(results):
    for of_layout in results.values():
        exact = of_layout["bf16 none"]
        for precision in ("fp8", "fp8_rowwise"):
            found = of_layout[f"{precision} none"]
            assert found["loss"] != exact["loss"]
            assert found["loss"] == pytest.approx(exact["loss"], rel=5e-3)
            # Turned back, it is bf16 to the bit.
            assert found["loss_after"] == exact["loss_after"]
        assert of_layout["fp8 none"]["loss"] != of_layout["fp8_rowwise none"]["loss"]


def test_computing_again_changes_no_bit(results):
    for of_layout in results.values():
        for precision, mode in CASES:
            found, plain = of_layout[f"{precision} {mode}"], of_layout[f"{precision} none"]
            assert (found["loss"], found["gradients"]) == (plain["loss"], plain["gradients"])
