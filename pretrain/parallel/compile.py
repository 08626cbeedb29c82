"""Compiles each block and the loss with torch.compile.

All blocks share one graph, so compilation is quick, and FSDP gathers weights between graphs. One
graph is compiled per input shape, so each stage may need its own, and validation needs another
without gradients. Any other value that changes between steps must be a tensor of fixed shape.
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from model.loss import losses_and_gradient
from model.network import Decoder

MAX_GRAPHS = 64
"""Maximum number of graphs per function. torch's limit of 8 is enough for only four stages."""


def compile_blocks(model: Decoder) -> None:
    """Sets up each block and the loss to be compiled at their first call."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_GRAPHS)
    for block in model.layers:
        block.compile(fullgraph=True, dynamic=False)
    model.lm_head.compiled = torch.compile(losses_and_gradient, fullgraph=True, dynamic=False)


def compiled_graphs() -> int:
    """Returns the number of graphs that this process has compiled."""
    return counters["stats"]["unique_graphs"]
