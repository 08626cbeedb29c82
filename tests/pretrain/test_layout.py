"""Sizes of the mesh, and what does not fit."""

import pytest

from conf.errors import InputError
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from tests.model.shapes import tiny

MODEL = tiny(num_heads=12, num_kv_heads=4, head_dim=8, intermediate_size=160, vocab_size=256)


def test_dp_shard_takes_what_is_left():
    assert check_layout(ParallelConfig(), MODEL, 8) == (1, 8, 1, 1)
    assert check_layout(ParallelConfig(tp=2), MODEL, 8) == (1, 4, 1, 2)
    assert check_layout(ParallelConfig(dp_replicate=2, tp=2), MODEL, 8) == (2, 2, 1, 2)
    assert check_layout(ParallelConfig(cp=2, tp=2), MODEL, 8) == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("config", "world_size", "sentence"),
    [
        (ParallelConfig(tp=3), 8, r"tp=3 does not match the number of processes, 8"),
        (ParallelConfig(dp_shard=3), 8, "dp_shard=3 x cp=1 x tp=1 does not match"),
        (ParallelConfig(tp=0), 1, "parallel.tp=0: expected 1 or more"),
        (
            ParallelConfig(tp=3),
            3,
            "model.num_heads=12|model.num_kv_heads=4: expected a multiple of",
        ),
        (ParallelConfig(tp=8), 8, "model.num_heads=12: expected a multiple of parallel.tp=8"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(config, world_size, sentence):
    with pytest.raises(InputError, match=sentence):
        check_layout(config, MODEL, world_size)


def test_a_vocabulary_that_does_not_split_is_refused():
    with pytest.raises(
        InputError, match=r"model.vocab_size=259: expected a multiple of parallel.tp=2"
    ):
        check_layout(ParallelConfig(tp=2), tiny(vocab_size=259), 2)


def test_weights_that_nobody_splits_stay_gathered_unless_memory_is_short():
    assert not ParallelConfig().reshards_after_forward(shards=1)
    assert ParallelConfig().reshards_after_forward(shards=2)
    assert ParallelConfig(reshard_after_forward=True).reshards_after_forward(shards=1)
    assert not ParallelConfig(reshard_after_forward=False).reshards_after_forward(shards=8)
