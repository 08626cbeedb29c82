"""The runs of tests/gpu on several GPUs, as far as a hollow GPU goes: real ranks, no numbers."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.gpu.several import KINDS, PRECISE, SHAPE, processes_of, train
from tests.gpu.test_two_gpus import LAYOUTS
from tests.patience import limit
from tests.runs import arguments, records

TWO = {"HOLLOW_GPUS": "2"}
SHORT = {"checkpoint__every_steps": 2}


@pytest.mark.parametrize(
    ("name", "kind", "second"),
    [("fsdp", "muon", "tp"), ("replicas", "", "one"), ("tp", "", "cp"), ("cp", "full", "fsdp")],
)
def test_a_layout_starts_saves_and_is_resumed_in_another(
    name, kind, second, command, corpus, tmp_path
):
    run_dir = tmp_path / "run"
    changes = SHORT | KINDS[kind]
    train(corpus.folder, run_dir, LAYOUTS[name], command, TWO, stop_after=2, **changes)
    assert (run_dir / "checkpoints" / "step_2" / "manifest.json").exists()
    layout = LAYOUTS.get(second, {"dp_shard": 1})
    assert processes_of(layout) == 1 + (second != "one")
    train(corpus.folder, run_dir, layout, command, TWO, stop_after=4, **changes)
    assert [record["step"] for record in records(run_dir)] == [1, 2, 3, 4]


def fail(fault, command, corpus, run_dir):
    quiet = {"validation__every_steps": 0, "checkpoint__every_steps": 0}
    settings = SHAPE | PRECISE | quiet | {"health__step_seconds": limit(6)}
    training = arguments(corpus.folder, run_dir, **settings)
    faulty = ("tests.faults.faulty", fault, "1", "4", *training[1:])
    done = command(*faulty, processes=2, timeout=200, **TWO)
    assert done.returncode != 0
    return json.loads((run_dir / "outcome.json").read_text())


def test_a_rank_that_fails_ends_at_once(command, corpus, tmp_path):
    outcome = fail("error", command, corpus, tmp_path / "run")
    assert (outcome["code"], outcome["cause"]) == (1, "rank 1: RuntimeError: on purpose")
    last = max(record["time"] for record in records(tmp_path / "run"))
    assert outcome["time"] - last < 60  # not what a collective or the watchdog waits


def test_the_collectives_of_nccl_are_written_when_a_rank_hangs(command, corpus, tmp_path):
    """The rank that sleeps is the one that writes, since a hollow collective waits for no rank."""
    outcome = fail("sleep", command, corpus, tmp_path / "run")
    assert outcome["code"] == 87
    logs = tmp_path / "run" / "logs"
    record = pickle.loads((logs / "flight_recorder_1").read_bytes())
    assert {entry["profiling_name"].split(":")[0] for entry in record["entries"]} == {"nccl"}
    about = json.loads((logs / "hang" / "rank_1.json").read_text())
    assert about["last"][-1]["profiling_name"].startswith("nccl:")


def test_a_node_with_fewer_gpus_than_ranks_is_named_at_once(command, tmp_path):
    program = ("launch.slurm.node_check", str(tmp_path), "2", "80")
    done = command(*program, processes=2, timeout=60, SLURMD_NODENAME="n1", HOLLOW_GPUS="1")
    assert "node n1: 1 GPUs, not timed, 1 GPUs instead of 2" in done.stdout
    done = command(*program, processes=2, timeout=60, SLURMD_NODENAME="n1", **TWO)
    assert (done.returncode, "node n1: 2 GPUs, matmul" in done.stdout) == (0, True)
