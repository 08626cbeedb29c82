"""Runs on several GPUs with NCCL, one process per GPU, compared with the curve of one GPU.

`test_two_gpus.py`, `test_four_gpus.py` and `test_eight_gpus.py` name the layouts that need so many
GPUs. `tests/hollow/test_several_gpus.py` takes the same ones through start, steps, checkpoint and
resume on a hollow GPU, without the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from tests.conftest import fresh_command
from tests.patience import limit
from tests.runs import arguments, ledger, records

SHAPE: dict[str, Any] = {
    "device": "cuda",
    "model__hidden_size": 256,
    "model__intermediate_size": 512,
    "model__num_heads": 16,
    "model__num_kv_heads": 8,
    "model__head_dim": 16,
    "model__vocab_size": 272,
    "model__max_seq_len": 512,
    "model__sliding_window": 64,
    "recipe__global_batch_tokens": 8192,
    "recipe__stages__short__seq_len": 256,
    "recipe__stages__short__tokens": 81920,
    "recipe__stages__long__seq_len": 512,
    "recipe__stages__long__tokens": 81920,
    "parallel__micro_batch_tokens": 1024,
    "optim__learning_rate": 0.003,
    "checkpoint__every_steps": 5,
}
"""Ten steps of each of two stages. Heads and vocabulary divide by 8, other sides by 8 x 16."""
PRECISE: dict[str, Any] = {
    "precision": "fp32",
    "parallel__attention": "sdpa",
    "parallel__compile": "false",
}
"""Layouts differ only by the order of sums."""
MUON: dict[str, Any] = {"optim": "muon", "optim__learning_rate": 0.01}
FULL: dict[str, Any] = {"model__sliding_window": None}
KINDS = {"": {}, "muon": MUON, "full": FULL}
TOLERANCES = {"fp32": 1e-3, "bf16": 0.02, "fp8": 0.02, "fp8_rowwise": 0.02}
"""Largest relative difference of a loss, by precision."""


def needs(gpus: int) -> list[pytest.MarkDecorator]:
    """Returns the marks of tests that need so many GPUs."""
    found = torch.cuda.device_count()
    reason = f"needs {gpus} GPUs with NCCL, and this machine has {found}"
    return [
        pytest.mark.gpu,
        pytest.mark.slow,
        pytest.mark.timeout(900),
        pytest.mark.skipif(found < gpus, reason=reason),
    ]


def processes_of(layout: dict[str, int]) -> int:
    """Returns the number of ranks of a layout."""
    return math.prod(layout.values())


def train(
    corpus: Path | str,
    run_dir: Path,
    layout: dict[str, int],
    command: Callable[..., CompletedProcess[str]] = fresh_command,
    environment: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Trains in a layout, under torchrun, and returns the run folder."""
    sizes = {f"parallel__{name}": size for name, size in layout.items()}
    settings = SHAPE | PRECISE | sizes | changes
    done = command(
        *arguments(corpus, run_dir, **settings),
        processes=processes_of(layout),
        timeout=400,
        **(environment or {}),
    )
    assert done.returncode == 0, done.stderr
    return run_dir


def check_curve(found: Path, single: Path) -> None:
    """Compares a run with that of one GPU: the same samples, and the same losses but for sums."""
    assert ledger(found) == ledger(single)
    ours, theirs = records(found), records(single)
    assert len(ours) == len(theirs) == 20
    precision = json.loads((found / "env.json").read_text())["precision"]
    for kind in ("train", "validation"):
        losses = [[record["loss"] for record in records(path, kind)] for path in (found, single)]
        assert losses[0] == pytest.approx(losses[1], rel=TOLERANCES[precision])
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 1


def fail(corpus: Path | str, run_dir: Path, gpus: int, fault: str) -> tuple[str, int]:
    """Trains with a fault of rank 1 before step 8; returns the cause and the code of the end."""
    settings = SHAPE | PRECISE | {"health__step_seconds": limit(20), "checkpoint__every_steps": 0}
    training = arguments(corpus, run_dir, **settings, validation__every_steps=0)
    done = fresh_command(
        *("tests.faults.faulty", fault, "1", "8", *training[1:]),
        processes=gpus,
        timeout=400,
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT="2",
    )
    assert done.returncode != 0
    outcome = json.loads((run_dir / "outcome.json").read_text())
    return outcome["cause"], outcome["code"]
