"""torch.compile block by block, and the loss: one graph serves all blocks, so that compiling is
quick, and FSDP gathers weights between graphs.

A graph is compiled for each shape: once a stage, and once more without gradients for validation.
Anything else that changes from step to step must be a tensor of a fixed shape.
"""

from __future__ import annotations

import torch
from torch._dynamo.utils import counters

from model.loss import losses_and_gradient
from model.network import Decoder

GRAPHS_AT_MOST = 64
"""torch gives up after 8 graphs of one function: four stages, with and without gradients."""


def compile_blocks(model: Decoder) -> None:
    """Compiles each block and the loss when first called; an error where one cannot be."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS_AT_MOST)
    for block in model.layers:
        block.compile(fullgraph=True, dynamic=False)
    model.lm_head.compiled = torch.compile(losses_and_gradient, fullgraph=True, dynamic=False)


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process so far."""
    return counters["stats"]["unique_graphs"]
