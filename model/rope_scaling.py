"""Settings of rotary positions: the base, and the scaling for sequences of more positions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from conf.errors import InputError, one_of

KEYS_OF_TYPES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "llama3": ("original_max_seq_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_seq_len", "attention_factor", "beta_fast", "beta_slow", "truncate"),
}
"""Keys of each type of scaling, next to `type` and `factor`."""
UNSCALED = "none"
"""Type with which a stage switches off the scaling of its model."""


@dataclass(unsafe_hash=True)
class RopeScaling:
    """Scaling of rotary positions, by which a model sees more positions than before.

    type: null for no scaling; `linear` divides all frequencies by `factor`; `llama3` divides low
        ones and keeps high ones; `yarn` does the same with a ramp over the pairs, and scales
        cosines and sines (arXiv 2309.00071).
    factor: by how much low frequencies are divided, 1 or more.
    original_max_seq_len: number of positions before scaling; required by `llama3` and `yarn`.
    low_freq_factor: (`llama3`) frequencies with fewer rotations than this within
        original_max_seq_len are divided by `factor`.
    high_freq_factor: (`llama3`) frequencies with more rotations than this are kept.
    attention_factor: (`yarn`) factor of cosines and sines; null for 0.1 * ln(factor) + 1.
    beta_fast: (`yarn`) rotations within original_max_seq_len above which frequencies are kept.
    beta_slow: (`yarn`) rotations below which frequencies are divided by `factor`.
    truncate: (`yarn`) whether the ends of the ramp are rounded to whole pairs.
    """

    type: str | None = None
    factor: float = 1.0
    original_max_seq_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def check(self, key: str) -> None:
        """Raises InputError if a setting is invalid. key: the config key of this scaling."""
        if self.type is None:
            if self != RopeScaling():
                raise InputError(
                    f"{key}.type=null: requires the other keys of {key} to have their defaults. "
                    f"Set {key}.type to one of {', '.join(KEYS_OF_TYPES)}, or remove the others."
                )
            return
        one_of(f"{key}.type", self.type, KEYS_OF_TYPES)
        if not self.factor >= 1:
            raise InputError(f"{key}.factor={self.factor}: expected 1 or more.")
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default and field.name not in KEYS_OF_TYPES[self.type]:
                raise InputError(
                    f"{key}.{field.name}={value}: {key}.type={self.type} does not have this key. "
                    "Remove the key, or choose another type."
                )
        if self.type == "linear":
            return
        if self.original_max_seq_len is None or self.original_max_seq_len < 1:
            raise InputError(
                f"{key}.original_max_seq_len={self.original_max_seq_len}: expected the number of "
                f"positions before scaling, which {key}.type={self.type} requires."
            )
        low, high = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("beta_slow", "beta_fast"),
        }[self.type]
        if not 0 < getattr(self, low) < getattr(self, high):
            raise InputError(
                f"{key}.{low}={getattr(self, low)}: expected more than 0 and less than "
                f"{key}.{high}={getattr(self, high)}. Change one of them."
            )
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise InputError(
                f"{key}.attention_factor={self.attention_factor}: expected more than 0, or null "
                "for the value that follows from the factor."
            )

    def over(self, base: RopeScaling) -> RopeScaling:
        """Returns the scaling of a stage that has this one, where the model has `base`."""
        if self.type is None:
            return base
        return RopeScaling() if self.type == UNSCALED else self

    def check_stage(self, key: str, seq_len: int) -> None:
        """Raises InputError if the scaling of a stage with sequences of this length is invalid."""
        if self.type == UNSCALED:
            if self != RopeScaling(UNSCALED):
                raise InputError(
                    f"{key}.type={UNSCALED}: requires the other keys of {key} to have their "
                    "defaults, because nothing is scaled. Remove them."
                )
            return
        self.check(key)
        if self.type == "yarn" and self.factor * (self.original_max_seq_len or 0) < seq_len:
            raise InputError(
                f"{key}.factor={self.factor:g}: scales {self.original_max_seq_len:,} positions to "
                f"fewer than the {seq_len:,} of the stage's sequences. Set it to "
                f"{seq_len / (self.original_max_seq_len or 1):g} or more, or use shorter sequences."
            )

    def describe(self) -> str:
        """Returns the scaling in words, such as `llama3 scaling by 32 from 8,192 positions`."""
        length = self.original_max_seq_len
        start = "" if length is None else f" from {length:,} positions"
        return f"{self.type} scaling by {self.factor:g}{start}"


class Rope(NamedTuple):
    """The rotary positions of a layer: the base, and the scaling or None."""

    theta: float
    scaling: RopeScaling | None = None

    def describe(self) -> str:
        """Returns base and scaling in words, such as `RoPE base 500,000`."""
        scaling = "" if self.scaling is None else f" with {self.scaling.describe()}"
        return f"RoPE base {self.theta:,g}{scaling}"
