"""Layouts of two GPUs, and faults: each takes the steps of one GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.gpu.several import KINDS, check_curve, fail, needs, train
from tests.runs import records

pytestmark = needs(2)
LAYOUTS = {"fsdp": {"dp_shard": 2}, "replicas": {"dp_replicate": 2, "dp_shard": 1}}
LAYOUTS |= {"tp": {"tp": 2}, "cp": {"cp": 2}}
COMPILED: dict[str, Any] = {"parallel__compile": "true", "parallel__attention": "varlen"}


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    """The run of one GPU, by kind and precision, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("single")

    def make(kind, precision="fp32"):
        changes = {} if precision == "fp32" else COMPILED | {"precision": precision}
        run_dir = folder / f"{kind}_{precision}"
        return train(corpus.folder, run_dir, {"dp_shard": 1}, **KINDS[kind], **changes)

    return cache(make)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_takes_the_steps_of_one_gpu(name, kind, single, corpus, tmp_path):
    found = train(corpus.folder, tmp_path / "run", LAYOUTS[name], **KINDS[kind])
    check_curve(found, single(kind))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_rowwise"])
@pytest.mark.parametrize("name", ["fsdp", "tp"])
def test_a_compiled_layout_trains_alike(name, precision, single, corpus, tmp_path):
    changes = COMPILED | {"precision": precision}
    found = train(corpus.folder, tmp_path / "run", LAYOUTS[name], **changes)
    check_curve(found, single("", precision))
    assert "recompile" not in [record["event"] for record in records(found, "event")]


def test_communication_that_overlaps_with_products(single, corpus, tmp_path):
    changes = COMPILED | {"precision": "bf16", "parallel__async_tp": "true"}
    found = train(corpus.folder, tmp_path / "run", LAYOUTS["tp"], **changes)
    check_curve(found, single("", "bf16"))


@pytest.mark.parametrize("second", ["one", "tp", "cp"])
def test_resumed_in_another_layout(second, single, corpus, tmp_path):
    run_dir = tmp_path / "run"
    train(corpus.folder, run_dir, LAYOUTS["fsdp"], stop_after=10)
    layout = {"dp_shard": 1} if second == "one" else LAYOUTS[second]
    check_curve(train(corpus.folder, run_dir, layout), single(""))


def test_a_rank_that_fails_ends_the_job_with_its_cause(corpus, tmp_path):
    """The collectives that it has started are pending, and no other rank joins them."""
    cause, code = fail(corpus.folder, tmp_path / "run", 2, "error")
    assert (cause, code) == ("rank 1: RuntimeError: on purpose", 1)


def test_a_rank_that_stops_is_named(corpus, tmp_path):
    cause, code = fail(corpus.folder, tmp_path / "run", 2, "SIGSTOP")
    assert code == 87
    assert "step 8 hangs: rank 1 did not respond" in cause
    assert (tmp_path / "run" / "logs" / "flight_recorder_0").stat().st_size > 1000


def test_a_rank_that_is_killed_ends_the_job(corpus, tmp_path):
    """The same command continues from the last checkpoint, with the curve it would have had."""
    from tests.conftest import fresh_command
    from tests.gpu.several import PRECISE, SHAPE
    from tests.runs import arguments, ledger

    run_dir = tmp_path / "run"
    training = arguments(corpus.folder, run_dir, **(SHAPE | PRECISE))
    faulty = ("tests.faults.faulty", "SIGKILL", "1", "13", *training[1:])
    done = fresh_command(*faulty, processes=2, timeout=400)
    assert done.returncode != 0
    assert len(ledger(run_dir)) < 20
    train(corpus.folder, run_dir, LAYOUTS["fsdp"])
    assert len(ledger(run_dir)) == 20
