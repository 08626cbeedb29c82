"""Models of other sizes with the shape of a given one.

Kept are the width per head, query heads per key-value head (unless there are fewer heads than
that), the ratio of MLP to hidden size and, as far as whole heads and layers allow, the ratio of
width to depth. Vocabulary, windows, norms and everything else stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from conf.errors import InputError, one_of
from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, parameters

MLP_MULTIPLE = 8
"""Sizes of MLPs are multiples of it, which matrix products on GPUs require for full speed."""
MOST_DEVIATION = 1.7
"""Largest factor by which width per layer may differ from that of the given model."""
COUNTS = ("head", "non_embedding", "all")
"""Ways to count the parameters N of a model; the first is the default."""


def count(model: ModelConfig, counted: str = COUNTS[0]) -> int:
    """Returns the number of parameters N of a model.

    Args:
        model: The model.
        counted: head for the parameters in matrix products, those of the blocks and of the head,
            which are the ones that cost FLOPs; non_embedding for those of the blocks alone; all
            for all, in which an untied embedding and its head count twice.
    """
    one_of("study.counted", counted, COUNTS)
    if counted == "all":
        return parameters(model)
    head = 0 if counted == "head" else model.vocab_size * model.hidden_size
    return matmul_parameters(model) - head


def shape_of(model: ModelConfig, size: float, counted: str = COUNTS[0]) -> ModelConfig:
    """Returns the model of the same shape whose number of parameters is nearest to `size`.

    Raises:
        InputError: the smallest model of this shape is more than twice as large.
    """
    if size == count(model, counted):
        return model

    def distance(other: ModelConfig) -> float:
        larger = abs(math.log(count(other, counted) / size))
        wider = abs(math.log(aspect(other) / aspect(model)))
        return larger + wider / 2

    found = min(_candidates(model, size, counted), key=distance)
    if count(found, counted) > 2 * size:
        raise InputError(
            f"study.sizes: {size:,.0f} parameters are too few for the shape of the target; its "
            f"smallest model has {count(found, counted):,}. Give larger sizes, or a target with "
            "smaller heads or a smaller vocabulary."
        )
    return found


def aspect(model: ModelConfig) -> float:
    """Returns the width per layer."""
    return model.hidden_size / model.num_layers


def _candidates(model: ModelConfig, size: float, counted: str) -> Iterator[ModelConfig]:
    """Yields models with whole heads and layers around a size.

    For each number of heads, these are the numbers of layers with which the size is nearest, and
    those with which the ratio of width to depth is.
    """
    group = model.num_heads // model.num_kv_heads
    growth = max(1.0, size / count(model, counted))
    most = math.ceil(2 * model.num_heads * math.sqrt(growth))
    repeated = max(len(pattern or "") for pattern in (model.window_pattern, model.rope_pattern))
    for heads in (*range(1, group), *range(group, most + 1, group)):
        middle = model.num_layers * heads / model.num_heads
        least = max(1, repeated, math.ceil(middle / MOST_DEVIATION))
        largest = math.floor(middle * MOST_DEVIATION)
        if least > largest:
            continue
        first, second = (_with_heads(model, heads, least + more) for more in (0, 1))
        per_layer = count(second, counted) - count(first, counted)
        nearest = least + (size - count(first, counted)) / per_layer
        wanted = {math.floor(nearest), math.ceil(nearest), math.floor(middle), math.ceil(middle)}
        for layers in {min(max(number, least), largest) for number in wanted}:
            yield _with_heads(model, heads, layers)


def _with_heads(model: ModelConfig, heads: int, layers: int) -> ModelConfig:
    hidden = 2 * round(model.hidden_size * heads / model.num_heads / 2)
    return replace(
        model,
        hidden_size=hidden,
        intermediate_size=_multiple(model.intermediate_size * hidden / model.hidden_size),
        num_heads=heads,
        num_kv_heads=max(1, heads * model.num_kv_heads // model.num_heads),
        num_layers=layers,
    )


def _multiple(value: float) -> int:
    return max(1, round(value / MLP_MULTIPLE)) * MLP_MULTIPLE


def overrides(model: ModelConfig) -> list[str]:
    """Returns the overrides that turn the target's model into this one."""
    keys = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
    return [
        *(f"model.{key}={getattr(model, key)}" for key in keys),
        f"model.head_dim={model.head_dim}",
    ]


class FlopsBySize:
    """Training FLOPs per token by number of parameters, for models of one shape."""

    def __init__(self, model: ModelConfig, seq_len: int, counted: str) -> None:
        sizes = [count(model, counted) * 2.0**step for step in range(-8, 7)]
        found: dict[int, float] = {}
        for size in sizes:
            try:
                other = shape_of(model, size, counted)
            except InputError:
                continue
            found[count(other, counted)] = flops_per_token(other, seq_len)
        self.known = sorted((math.log(size), math.log(flops)) for size, flops in found.items())

    @property
    def smallest(self) -> float:
        """The smallest size."""
        return math.exp(self.known[0][0])

    @property
    def largest(self) -> float:
        """The largest size, which is 64 times the given model's."""
        return math.exp(self.known[-1][0])

    def __call__(self, size: float) -> float:
        """Returns FLOPs per token, interpolated and extrapolated by powers of the size."""
        x = math.log(size)
        pairs = list(zip(self.known, self.known[1:], strict=False))
        (x0, y0), (x1, y1) = next((p for p in pairs if x <= p[1][0]), pairs[-1])
        return math.exp(y0 + (x - x0) * (y1 - y0) / (x1 - x0))
