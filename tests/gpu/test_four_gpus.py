"""Layouts that need four GPUs: each takes the steps of one GPU."""

from __future__ import annotations

from functools import cache

import pytest

from tests.gpu.several import KINDS, check_curve, needs, train

pytestmark = needs(4)
LAYOUTS = {
    "fsdp": {"dp_shard": 4},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2},
    "tp": {"tp": 4},
    "cp": {"cp": 4},
    "fsdp and tp": {"dp_shard": 2, "tp": 2},
    "fsdp and cp": {"dp_shard": 2, "cp": 2},
    "replicas and cp": {"dp_replicate": 2, "dp_shard": 1, "cp": 2},
    "cp and tp": {"cp": 2, "tp": 2},
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


@pytest.mark.parametrize("second", ["fsdp and tp", "cp and tp", "replicas and cp"])
def test_resumed_in_another_layout(second, single, corpus, tmp_path):
    run_dir = tmp_path / "run"
    train(corpus.folder, run_dir, LAYOUTS["hsdp"], stop_after=10)
    check_curve(train(corpus.folder, run_dir, LAYOUTS[second]), single(""))
