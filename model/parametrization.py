"""CompleteP: scales with which hyperparameters transfer over width and depth (arXiv 2505.01618).

A model is described relative to a base model of the same proportions, whose learning rate, weight
decay, epsilon and initialization are tuned. With m_N = hidden_size / base_hidden_size and
m_L = num_layers / base_num_layers, the larger model differs from a standard one in these points:

    residual branches          x + branch(x) / m_L
    logits                     divided by m_N
    matrices of the blocks     standard deviation / sqrt(m_N), learning rate / m_N, decay * m_N
    epsilon of AdamW           / (m_N * m_L) in the blocks, / m_N elsewhere

Embedding, head and norms keep their learning rate, decay and initialization. At the base shape, all
scales are 1. Attention scores are divided by head_dim instead of its square root if heads differ in
size from those of the base model (arXiv 2203.03466).

An update that is orthogonalized has a spectral norm that its RMS fixes: lr * RMS * sqrt(max(rows,
columns)), which grows with sqrt(m_N). It has to be as large as sqrt(fan_out / fan_in) for every
width (arXiv 2310.17813), a constant if the proportions are. So the learning rate of Muon is divided
by sqrt(m_N), and its decay multiplied by the same. AdamW's updates of a matrix have a low rank, and
a spectral norm that grows with m_N. Neither depends on the depth: a change of each branch by a
constant, divided by m_L and summed over the layers, changes the stream by a constant.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from conf.errors import InputError, one_of

PARAMETRIZATIONS = ("standard", "completep")


class Shape(Protocol):
    """The fields of `ModelConfig` that a parametrization depends on."""

    hidden_size: int
    num_layers: int
    head_dim: int | None
    parametrization: str
    base_hidden_size: int | None
    base_num_layers: int | None
    base_head_dim: int | None


class UpdateScales(NamedTuple):
    """Factors on the optimizer's settings for one parameter."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


class Parametrization(NamedTuple):
    """The size of a model relative to its base model; all 1 with `parametrization=standard`.

    Attributes:
        width: hidden_size over that of the base model.
        depth: num_layers over that of the base model.
        head: head_dim over that of the base model.
    """

    width: float = 1.0
    depth: float = 1.0
    head: float = 1.0

    @property
    def residual_multiplier(self) -> float:
        """Factor on the output of attention and of the MLP."""
        return 1 / self.depth

    @property
    def output_multiplier(self) -> float:
        """Factor on the output of the final norm, and so on the logits before their bound."""
        return 1 / self.width

    @property
    def query_multiplier(self) -> float:
        """Factor on the queries."""
        return 1 / math.sqrt(self.head)

    def init_scale(self, name: str, dimensions: int) -> float:
        """Returns the factor on the standard deviation of a parameter's initial values."""
        return 1 / math.sqrt(self.width) if is_block_matrix(name, dimensions) else 1.0

    def update_scales(self, name: str, dimensions: int, orthogonalized: bool) -> UpdateScales:
        """Returns the factors on the optimizer's settings for a parameter.

        orthogonalized: whether its updates are orthogonalized, and have an RMS that does not depend
            on the shape.
        """
        eps = 1 / self.width
        if name.startswith("layers."):
            eps /= self.depth
        if not is_block_matrix(name, dimensions):
            return UpdateScales(eps=eps)
        rate = 1 / (math.sqrt(self.width) if orthogonalized else self.width)
        return UpdateScales(rate, 1 / rate, eps)


STANDARD = Parametrization()


def is_block_matrix(name: str, dimensions: int) -> bool:
    """Returns whether a parameter is a matrix in a block, both of whose sides grow with width."""
    return name.startswith("layers.") and dimensions == 2


def parametrization_of(config: Shape) -> Parametrization:
    """Returns the scales of a model."""
    if config.parametrization == "standard":
        return STANDARD
    assert config.base_hidden_size is not None
    assert config.base_num_layers is not None
    assert config.head_dim is not None
    return Parametrization(
        config.hidden_size / config.base_hidden_size,
        config.num_layers / config.base_num_layers,
        config.head_dim / (config.base_head_dim or config.head_dim),
    )


def check_parametrization(config: Shape) -> None:
    """Raises InputError if the base shape is missing or unused, or a feature depends on width."""
    one_of("model.parametrization", config.parametrization, PARAMETRIZATIONS)
    required = ("base_hidden_size", "base_num_layers")
    for key in (*required, "base_head_dim"):
        value = getattr(config, key)
        if config.parametrization == "standard":
            if value is not None:
                raise InputError(
                    f"model.{key}={value}: only model.parametrization=completep uses a base shape. "
                    "Remove this key, or add model.parametrization=completep."
                )
        elif value is None and key in required:
            raise InputError(
                f"model.{key}=null: model.parametrization=completep requires the shape of a base "
                f"model. Give model.{key}, the value of the model whose learning rate is known."
            )
        elif value is not None and value < 1:
            raise InputError(f"model.{key}={value}: expected 1 or more.")
    if config.parametrization == "standard":
        return
    reasons = {
        "scale_embeddings": "embeddings then grow with the square root of the width, which their "
        "learning rate does not follow",
        "zero_centered_norms": "an exported norm has to contain a multiplier, and a weight of "
        "1 + w loses its digits in bfloat16 if 1 + w is small",
    }
    for key, reason in reasons.items():
        if getattr(config, key):
            raise InputError(
                f"model.{key}=true: not supported with model.parametrization=completep, because "
                f"{reason}. Use model.parametrization=standard, or another model.architecture."
            )


def parametrization_row(config: Shape) -> dict[str, str]:
    """Returns the row of a table that describes the parametrization; none if it is standard."""
    if config.parametrization == "standard":
        return {}
    return {"parametrization": describe_parametrization(config)}


def describe_parametrization(config: Shape) -> str:
    """Returns the parametrization in words, such as `completep, base of 4 layers of 256`."""
    if config.parametrization == "standard":
        return config.parametrization
    scales = parametrization_of(config)
    heads = f" with heads of {config.base_head_dim}" if config.base_head_dim else ""
    return (
        f"{config.parametrization}, base of {config.base_num_layers} layers of "
        f"{config.base_hidden_size}{heads} (width times {scales.width:.4g}, depth times "
        f"{scales.depth:.4g})"
    )
