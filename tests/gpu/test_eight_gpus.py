"""Layouts that need eight GPUs, a whole node: each takes the steps of one GPU."""

from __future__ import annotations

from functools import cache

import pytest

from tests.gpu.several import KINDS, check_curve, needs, train

pytestmark = needs(8)
LAYOUTS = {
    "fsdp": {"dp_shard": 8},
    "hsdp": {"dp_replicate": 2, "dp_shard": 4},
    "hsdp and tp": {"dp_replicate": 2, "dp_shard": 2, "tp": 2},
    "fsdp, cp and tp": {"dp_shard": 2, "cp": 2, "tp": 2},
    "replicas, cp and tp": {"dp_replicate": 2, "dp_shard": 1, "cp": 2, "tp": 2},
}


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    """The run of one GPU of a kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("single")
    return cache(
        lambda kind: train(corpus.folder, folder / f"one_{kind}", {"dp_shard": 1}, **KINDS[kind])
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_takes_the_steps_of_one_gpu(name, kind, single, corpus, tmp_path):
    found = train(corpus.folder, tmp_path / "run", LAYOUTS[name], **KINDS[kind])
    check_curve(found, single(kind))


def test_resumed_on_half_the_gpus(single, corpus, tmp_path):
    run_dir = tmp_path / "run"
    train(corpus.folder, run_dir, LAYOUTS["hsdp and tp"], stop_after=10)
    check_curve(train(corpus.folder, run_dir, {"dp_shard": 4}), single(""))
