"""The weight of each checkpoint in an average, from the oldest to the newest.

An average of checkpoints of a run stands for a decay of its learning rate (WSM, arXiv 2507.17634):
the average of the weights w_0 ... w_k, with coefficients c_0 ... c_k that sum to 1, is

    w_0 + (c_1 + ... + c_k) * (w_1 - w_0) + ... + c_k * (w_k - w_{k-1})

so that it scales down the changes between checkpoints, the last ones most. `uniform` scales them as
a linear decay would, and `sqrt` as the decay `optim.decay_shape=sqrt`: by 1 - sqrt(j / (k + 1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any

from conf.errors import InputError, one_of

NAMES = ("uniform", "linear", "ema", "sqrt")


def check_weights(weights: Any, decay: float) -> None:
    """Raises InputError if `weights` is neither a name nor a list of numbers, or decay is wrong."""
    if isinstance(weights, str):
        one_of("weights", weights, NAMES)
    elif not isinstance(weights, Sequence) or not all(_is_weight(value) for value in weights):
        raise InputError(
            f"weights={weights}: expected {', '.join(NAMES)}, or a list of numbers of 0 or more, "
            "such as weights=[1,2,3]."
        )
    elif not sum(weights) > 0:
        raise InputError(f"weights={list(weights)}: expected a sum of more than 0.")
    if not 0 < decay < 1:
        raise InputError(f"decay={decay}: expected more than 0 and less than 1.")


def weights_of(weights: str | Sequence[float], count: int, decay: float) -> list[float]:
    """Returns the coefficients of `count` checkpoints, whose sum is 1.

    Args:
        weights: uniform, linear (1, 2, 3, ...), ema, sqrt, or one number per checkpoint.
        count: Number of checkpoints.
        decay: With ema, the weight of each checkpoint relative to the next newer one.
    """
    if not isinstance(weights, str):
        if len(weights) != count:
            raise InputError(
                f"weights={list(weights)}: {len(weights)} weights for {count} checkpoints. Give "
                "one weight per checkpoint."
            )
        found = [float(value) for value in weights]
    elif weights == "uniform":
        found = [1.0] * count
    elif weights == "linear":
        found = [float(place) for place in range(1, count + 1)]
    elif weights == "ema":
        found = [decay ** (count - place) for place in range(1, count + 1)]
    else:
        found = [sqrt(place + 1) - sqrt(place) for place in range(count)]
    total = sum(found)
    return [value / total for value in found]


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value) and value >= 0
