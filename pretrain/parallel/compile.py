"""Compiles each block and the loss with torch.compile.

All blocks share one graph, so compilation is quick, and FSDP gathers weights between graphs. A
graph is compiled per shape: once per stage, and again without gradients for validation. Anything
else that changes between steps must be a tensor of fixed shape.
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from model.loss import losses_and_gradient
from model.network import Decoder

MAX_GRAPHS = 64
"""Limit of graphs per function; torch's own limit is 8, for four stages and their validation."""


def compile_blocks(model: Decoder) -> None:
    """Makes each block and the loss compile at their first call, or fail there."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_GRAPHS)
    for block in model.layers:
        block.compile(fullgraph=True, dynamic=False)
    model.lm_head.compiled = torch.compile(losses_and_gradient, fullgraph=True, dynamic=False)


def compiled_graphs() -> int:
    """Returns the number of graphs that this process has compiled."""
    return counters["stats"]["unique_graphs"]
