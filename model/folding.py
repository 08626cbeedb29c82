"""Moves the multipliers of a parametrization into weights, and out of them again.

Classes of `transformers` have no multipliers. An exported model contains them in the last weights
before they apply: that of the residual branches in `o_proj` and `down_proj`, or in the norms that
follow these; that of the logits in the final norm, so that a head may be tied to the embedding; and
that of the queries in `q_proj` or its norm.
"""

from __future__ import annotations

from torch import Tensor

from model.config import ModelConfig
from model.init import RESIDUAL_WRITERS
from model.norms import NORM_PLACES
from model.parametrization import parametrization_of


def multiplier(name: str, config: ModelConfig) -> float:
    """Returns the factor that the exported parameter `name` contains."""
    scales, places = parametrization_of(config), NORM_PLACES[config.norm_order]
    if name == "norm.weight":
        return scales.output_multiplier
    after = (places.after_attention, places.after_mlp)
    writers = RESIDUAL_WRITERS if after == (None, None) else tuple(f"{x}.weight" for x in after)
    if name.endswith(writers):
        return scales.residual_multiplier
    queries = ".q_norm." if config.qk_norm else ".q_proj."
    return scales.query_multiplier if queries in name else 1.0


def folded(name: str, value: Tensor, config: ModelConfig) -> Tensor:
    """Returns the value that an exported parameter has without multipliers in the network."""
    factor = multiplier(name, config)
    return value if factor == 1 else value.float() * factor


def unfolded(name: str, value: Tensor, config: ModelConfig) -> Tensor:
    """Returns the value of a parameter, given the exported one: the inverse of `folded`."""
    factor = multiplier(name, config)
    return value if factor == 1 else value.float() / factor
