"""The coordinate check: flat with CompleteP, and visibly not flat without it."""

from __future__ import annotations

import pytest

from launch.studies.coordinates import coordinate_check, drawn, slopes
from launch.studies.shapes import completep, resized
from model.config import ModelConfig
from pretrain.config import OptimConfig

BASE = ModelConfig(
    name="base",
    vocab_size=256,
    hidden_size=64,
    intermediate_size=160,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=64,
)
SIZES = {
    "hidden_size": [resized(BASE, width, 2) for width in (64, 192)],
    "num_layers": [resized(BASE, 64, depth) for depth in (2, 12)],
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("size", SIZES)
def test_changes_are_flat_with_completep_only(name, size):
    optim = OptimConfig(name, learning_rate=0.002, weight_decay=0.0)
    models = SIZES[size]
    found = coordinate_check([completep(model, BASE) for model in models], optim, steps=5)
    standard = coordinate_check(models, optim, steps=5)
    # At the base shape, both are the same model.
    assert found[0] == standard[0]
    flat, steep = slopes(found, size), slopes(standard, size)
    assert max(map(abs, flat.values())) < 0.3, flat
    assert steep["stream"] > 0.6, steep
    assert steep["attention"] > 0.4, steep
    assert "<svg" in drawn(found, size, "Change by size").wide
