"""The checks of a run are pure: no torch, no device, nothing read but what they are given."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conf.errors import InputError
from pretrain.checks import Job, check_cuda_graphs
from pretrain.config import ParallelConfig
from tests.patience import limit


def test_the_checks_do_not_import_torch():
    code = "import sys, pretrain.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=limit(60)).returncode == 0


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        (Job(1, "cpu"), {}, "requires a GPU"),
        (Job(2, "cuda"), {}, "requires a single process, but the run has 2"),
        (Job(1, "cuda"), {"sharded_accumulation": False}, "reduced in every micro-batch"),
    ],
)
def test_runs_that_no_cuda_graph_can_hold_are_refused(job, changes, message):
    with pytest.raises(InputError, match=f"parallel.cuda_graphs=true: .*{message}"):
        check_cuda_graphs(ParallelConfig(cuda_graphs=True, **changes), job)
    check_cuda_graphs(ParallelConfig(**changes), job)
    check_cuda_graphs(ParallelConfig(cuda_graphs=True), Job(1, "cuda"))
