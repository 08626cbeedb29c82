"""Numbers that are silently wrong: copies of the weights, steps done twice, receipts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from conf.errors import InputError, RunAborted
from pretrain.health.fingerprint import bits, local_sums
from pretrain.health.receipts import ReceiptsConfig, read, receipts
from tests.runs import arguments, records

QUICK: dict[str, Any] = {"validation__every_steps": 0, "health__compare_every_steps": 2}


def test_any_flipped_bit_changes_the_sum():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.randn(50).to(dtype)
        before = bits(values)
        width = torch.int32 if dtype == torch.float32 else torch.int16
        for bit in range(8 * values.element_size()):
            flipped = values.clone().view(width)
            flipped[7] ^= torch.tensor(1, dtype=width) << bit
            assert bits(flipped.view(dtype)) != before
    layer = torch.nn.Linear(3, 3, bias=False)
    swapped = torch.nn.ModuleDict({"a": layer, "b": torch.nn.Linear(3, 3, bias=False)})
    other = torch.nn.ModuleDict({"a": swapped["b"], "b": swapped["a"]})
    assert local_sums(swapped)[0] != local_sums(other)[0]


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (0, {}),
    "fsdp2": (2, {}),
    "replicate2": (2, {"parallel__dp_replicate": 2, "parallel__dp_shard": 1}),
    "tp2": (2, {"parallel__tp": 2}),
}


def test_the_fingerprint_knows_no_layout(command, corpus, tmp_path):
    """With a learning rate of 0 the weights stay what their names give."""
    still = {"optim__learning_rate": 0, "optim__min_learning_rate": 0, "optim__weight_decay": 0}
    found = {}
    for name, (processes, changes) in LAYOUTS.items():
        run_dir = tmp_path / name
        training = arguments(corpus.folder, run_dir, stop_after=2, **QUICK, **still, **changes)
        done = command(*training, processes=processes)
        assert done.returncode == 0, done.stderr
        (found[name],) = [line["weights"] for line in read(run_dir / "receipts.jsonl")[1:]]
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("layout", ["replicate2", "tp2"])
def test_a_flipped_bit_of_one_copy_is_found(layout, command, corpus, tmp_path):
    processes, changes = LAYOUTS[layout]
    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, checkpoint__every_steps=4, **QUICK, **changes)
    done = command("tests.faults.faulty", "flip", "1", "4", *training[1:], processes=processes)
    assert "exitcode  : 88" in done.stderr
    assert (
        "replicas of the weights differ after step 4 (ranks 0, 1 differ from each other)"
        in done.stderr
    )
    assert not list((run_dir / "checkpoints").glob("step_*"))


def test_a_step_done_twice(command, corpus, tmp_path):
    for fault, code, steps in (("none", 0, "[1,3]"), ("drift", 88, "[3]")):
        run_dir = tmp_path / fault
        changes: dict[str, Any] = {"health__replay_steps": steps, "stop_after": 4, **QUICK}
        done = command(
            "tests.faults.faulty",
            fault,
            "0",
            "3",
            *arguments(corpus.folder, run_dir, **changes)[1:],
        )
        assert done.returncode == code, done.stderr
    assert "step 3 gave different results when it was replayed, on rank 0" in done.stderr
    events = [r for r in records(tmp_path / "none", "event") if r["event"] == "replay"]
    assert [(event["step"], event["unequal_ranks"]) for event in events] == [(1, []), (3, [])]
    whole = tmp_path / "whole"
    changes = {"stop_after": 4, **QUICK}
    assert command(*arguments(corpus.folder, whole, **changes)).returncode == 0
    chains = [read(run / "receipts.jsonl")[-1]["chain"] for run in (whole, tmp_path / "none")]
    assert chains[0] == chains[1]  # a replay leaves no trace


def test_a_step_after_a_validation_is_done_twice_alike(command, corpus, tmp_path):
    """The validation gathers weights in bf16; what is kept and put back are the split ones."""
    chains = []
    for name, steps in (("plain", []), ("replayed", [3])):
        changes: dict[str, Any] = QUICK | {
            "precision": "bf16",
            "validation__every_steps": 2,
            "health__replay_steps": steps,
            "stop_after": 4,
        }
        done = command(*arguments(corpus.folder, tmp_path / name, **changes))
        assert done.returncode == 0, done.stderr
        chains.append(read(tmp_path / name / "receipts.jsonl")[-1]["chain"])
    assert chains[0] == chains[1]


def test_receipts_prove_that_a_resumed_run_is_the_uninterrupted_one(
    command, corpus, tmp_path, capsys
):
    for name, stop, seed in (
        ("whole", None, 0),
        ("resumed", 5, 0),
        ("resumed", None, 0),
        ("other", 2, 1),
    ):
        changes = QUICK | {"stop_after": stop, "seed": seed}
        done = command(*arguments(corpus.folder, tmp_path / name, **changes))
        assert done.returncode == 0, done.stderr
    receipts(ReceiptsConfig(str(tmp_path / "whole"), str(tmp_path / "resumed")))
    assert "equal bit by bit: tokens, loss and gradient norm of 20 steps, weights at 10" in (
        capsys.readouterr().out
    )
    with pytest.raises(
        RunAborted, match=r"runs first differ in step 1: digest .*, loss [\d.]+ and"
    ):
        receipts(ReceiptsConfig(str(tmp_path / "whole"), str(tmp_path / "other")))
    done = command("pretrain", "receipts", f"a={tmp_path / 'whole'}", f"b={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert "nowhere/receipts.jsonl cannot be read" in done.stderr
    path = tmp_path / "whole" / "receipts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["loss"] = "0x1.8p+1"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="hash of line 4 does not match"):
        read(path)
