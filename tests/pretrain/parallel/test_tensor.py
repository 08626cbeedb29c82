"""Tensor parallelism hands plain tensors to blocks, which compiled code differentiates."""

from __future__ import annotations

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from model.network import build_meta
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from pretrain.parallel import parallelize
from pretrain.parallel.mesh import make_layout
from pretrain.planning.fake_ranks import fake_ranks
from tests.model.shapes import tiny


def test_blocks_get_embeddings_that_have_arrived():
    """Compiled, a block gave no gradient to the embedding if its collective was still running."""
    config = tiny(vocab_size=260, num_layers=1)
    parallel = ParallelConfig(dp_shard=1, tp=2, micro_batch_tokens=128)
    with fake_ranks(2):
        layout = make_layout(check_layout(parallel, config, 2), torch.device("cpu"))
        model = build_meta(config)
        parallelize(model, layout, parallel, "fp32")
        model.to_empty(device="cpu")
        given = []
        model.layers[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
        tokens = torch.zeros(2, 64, dtype=torch.int64)
        model(tokens, tokens)
    (embedded,) = given
    assert embedded.requires_grad
    assert not isinstance(embedded, AsyncCollectiveTensor)
