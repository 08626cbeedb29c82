"""Distillation has the gradients of plain torch on whole logits, in every layout of the matrix."""

from __future__ import annotations

import json
from math import prod

import pytest

from pretrain.config import MESH
from tests.distributed.test_parity import LAYOUTS

NAMES = [name for name in LAYOUTS if not name.endswith("muon")]
"""The optimizer makes no difference to gradients."""
SIZES = {name: prod(LAYOUTS[name].get(axis, 1) for axis in MESH) for name in NAMES}


@pytest.mark.parametrize("processes", sorted(set(SIZES.values())))
def test_gradients_equal_those_of_whole_logits(processes, command, tmp_path):
    names = [name for name in NAMES if SIZES[name] == processes]
    out = tmp_path / "results.json"
    done = command("tests.distributed.distilled", str(out), *names, processes=processes)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results.keys() == set(names)
    for name, worst in results.items():
        print(f"{name}: largest relative differences {worst}")
        assert max(worst.values()) < 1e-5, name
