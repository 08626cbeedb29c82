"""Steps of Muon and NorMuon on sharded matrices: the bits of one process, in few messages."""

from __future__ import annotations

import json

import pytest

from pretrain.optim import is_block_matrix
from pretrain.planning.memory import parameter_shapes
from tests.distributed.owned import CASES, DTYPES, LAYOUTS, MODEL

NAMES = [", ".join(case) for case in CASES]
SHAPES = {
    k: shape for k, shape in parameter_shapes(MODEL).items() if is_block_matrix(k, len(shape))
}


@pytest.fixture(scope="module")
def results(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("owned") / "results.json"
    done = command("tests.distributed.owned", str(out), processes=4)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_states_have_the_bits_of_one_process(name, results):
    found = results[name]
    assert len(found["distances"]) > 3 * len(SHAPES)
    assert max(found["distances"].values()) == 0
    assert found["replicas_are_equal"]


@pytest.mark.parametrize("name", NAMES)
def test_each_matrix_travels_once_to_its_owner_and_once_to_each_replica(name, results):
    optimizer, layout = name.split(", ")
    elements = sum(shape.numel() for shape in SHAPES.values())
    replicas = LAYOUTS[layout].get("dp_replicate", 1)
    sent = sum(rank["all_to_all"] for rank in results[name]["bytes"])
    assert sent == elements * DTYPES[optimizer].itemsize * (1 + replicas)
    for rank in results[name]["bytes"]:
        rows = 4 * sum(shape[0] for shape in SHAPES.values())
        assert rank.get("all_reduce", 0) == (rows if optimizer == "normuon" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_of_whole_rounds_and_do_not_block(name, results):
    for rank in results[name]["calls"]:
        assert rank["all_to_all"] < 2 * len(SHAPES)  # as many messages as it would be one by one
    assert not any(rank["all_to_all"] for rank in results[name]["blocking"])
