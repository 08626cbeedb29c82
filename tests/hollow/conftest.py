"""Fixtures of tests on a hollow GPU. Without one, these tests are not even imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store.manifest import Manifest
from tests.hollow.driver import active
from tests.warm import Warm

if not active():
    # Run by `make rehearse`. A skipped test would have to be imported first, which takes long.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def rehearse(corpus: Manifest, tmp_path: Path) -> Callable[..., Any]:
    """Runs a training of a few steps; see `tests.hollow.harness`."""
    from tests.hollow import harness

    def run(ranks: int = 1, steps: int = 3, checkpoints: bool = False, **changes: Any) -> Any:
        config = harness.small_run(corpus.folder, tmp_path / "run", stop_after=steps, **changes)
        return harness.rehearse(config, ranks, checkpoints)

    return run


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Like the fixture for the CPU, with the stand-ins for what needs numbers."""
    process = Warm(Path(__file__).parents[2], "tests.hollow.standins")
    yield process
    process.close()
