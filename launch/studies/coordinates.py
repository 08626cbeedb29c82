"""The coordinate check: how much a few steps change activations, by width and depth.

Hyperparameters can only transfer if training changes each part of the network by as much in a wide
or deep model as in a narrow or shallow one (arXiv 2203.03466, appendix D.1). `coordinate_check`
trains models of several shapes for a few steps on one batch, and records the root mean square of
the change of these activations on that batch:

    attention    output of attention, mean over the layers, before its multiplier
    MLP          output of the MLP, likewise
    stream       input of the final norm
    logits       output of the head

A flat line has the slope 0: the exponent e with which a change grows as size^e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor

from model.config import ModelConfig
from model.init import initial_value
from model.network import Decoder
from model.parametrization import parametrization_of
from pages.drawing import Drawing, draw
from pages.svg import Chart, Series
from pretrain.config import OptimConfig
from pretrain.optim import build_optimizer

PLACES = ("attention", "MLP", "stream", "logits")
"""Activations whose change is measured."""
BATCH, SEQ = 4, 64
"""Sequences and tokens per sequence of the batch."""


@dataclass(frozen=True)
class Point:
    """Root mean squares of the changes in one shape, by place in PLACES."""

    hidden_size: int
    num_layers: int
    changes: dict[str, float]


def coordinate_check(
    models: Sequence[ModelConfig], optim: OptimConfig, steps: int = 8, seeds: int = 1
) -> list[Point]:
    """Returns the changes of activations in each model, as geometric means over seeds.

    Args:
        models: The models.
        optim: The optimizer, whose learning rate is constant here.
        steps: Number of steps.
        seeds: Number of initializations.
    """
    points = []
    for model in models:
        found = [changes(model, optim, steps, seed) for seed in range(seeds)]
        means = {
            place: math.exp(sum(math.log(one[place]) for one in found) / seeds) for place in PLACES
        }
        points.append(Point(model.hidden_size, model.num_layers, means))
    return points


def changes(config: ModelConfig, optim: OptimConfig, steps: int, seed: int) -> dict[str, float]:
    """Returns the root mean squares of the changes of activations in one model."""
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, config, seed))
    optimizer = build_optimizer(model, optim, None, parametrization_of(config))
    tokens = text_like(config.vocab_size, seed)
    labels = tokens.roll(-1, 1)
    before = activations(model, tokens)
    for _ in range(steps):
        loss = model(tokens, labels)
        assert isinstance(loss, Tensor)
        (loss / labels.numel()).backward()
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
    after = activations(model, tokens)
    return {place: rms(after[place] - before[place]) for place in PLACES}


def text_like(vocab_size: int, seed: int) -> Tensor:
    """Returns tokens (BATCH, SEQ) of a Markov chain in which each token has four successors."""
    generator = torch.Generator().manual_seed(seed)
    successors = torch.randint(0, vocab_size, (vocab_size, 4), generator=generator)
    choices = torch.randint(0, 4, (SEQ, BATCH), generator=generator)
    rows = [torch.randint(0, vocab_size, (BATCH,), generator=generator)]
    for choice in choices[1:]:
        rows.append(successors[rows[-1], choice])
    return torch.stack(rows, 1)


@torch.no_grad()
def activations(model: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """Returns the activations of a batch by place, those of all layers stacked."""
    found: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    with recorded(model, found):
        logits = model(tokens)
    assert isinstance(logits, Tensor)
    found["logits"].append(logits)
    return {place: torch.stack(values) for place, values in found.items()}


@contextmanager
def recorded(model: Decoder, found: dict[str, list[Tensor]]) -> Iterator[None]:
    """Appends the outputs of attention and MLPs, and the input of the final norm."""

    def output(place: str) -> Callable[..., None]:
        return lambda module, args, out: found[place].append(out)

    hooks = [model.norm.register_forward_pre_hook(lambda m, args: found["stream"].append(args[0]))]
    for block in model.layers:
        hooks.append(block.get_submodule("self_attn").register_forward_hook(output("attention")))
        hooks.append(block.get_submodule("mlp").register_forward_hook(output("MLP")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rms(x: Tensor) -> float:
    """Returns the root mean square of a tensor."""
    return float(x.double().square().mean().sqrt())


def slopes(points: Sequence[Point], size: str) -> dict[str, float]:
    """Returns, per place, the exponent e of a change that grows as size^e.

    size: hidden_size or num_layers.
    """
    logs = [math.log(getattr(point, size)) for point in points]
    return {
        place: linear_regression(logs, [math.log(p.changes[place]) for p in points]).slope
        for place in PLACES
    }


def drawn(points: Sequence[Point], size: str, title: str) -> Drawing:
    """Returns a chart of the changes relative to those of the first point, in powers of 2."""
    series = [
        Series(
            place,
            [
                (getattr(point, size), math.log2(point.changes[place] / points[0].changes[place]))
                for point in points
            ],
            f"s{number + 1}",
            dots=True,
        )
        for number, place in enumerate(PLACES)
    ]
    chart = Chart(
        title,
        f"RMS of the change, relative to {size} = {getattr(points[0], size)}",
        series,
        x_label=size,
        bottom=-2.0,
        top=4.0,
        format_y=lambda value: f"{2**value:.3g}",
        log_x=True,
    )
    return draw(chart)
