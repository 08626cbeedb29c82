"""The shape of a decoder, as set in `conf/model/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from omegaconf import MISSING

from conf.errors import InputError, one_of
from model.families import family_named
from model.layer_pattern import check_window_pattern, layer_windows, shortest_pattern

INIT_SCHEMES = ("normal", "scaled_residual")


class LayerConfig(NamedTuple):
    """Settings that may differ from layer to layer.

    Attributes:
        window: Number of keys that a query sees, itself included; None for full attention.
        rope_theta: Base of the rotary positions.
    """

    window: int | None
    rope_theta: float


@dataclass
class ModelConfig:
    """A pre-norm decoder with RMSNorm, RoPE, grouped-query attention and SwiGLU.

    architecture: the Hugging Face family of the export, one of `model.families`. Each family
        supports some of the features below and rejects the others.
    sliding_window: number of keys that a token sees, itself included; null for full attention.
    window_pattern: which layers have the sliding window (L) and which have full attention (G), as
        in LLLG, repeated over the layers; null if all layers are the same.
    qk_norm: whether queries and keys are normalized per head, before RoPE.
    init: initialization of the matrices. `normal` draws each one with a mean of 0 and a standard
        deviation of initializer_range; `scaled_residual` then divides the two matrices of a block
        that write into the residual stream by sqrt(2 * num_layers) (GPT-2, section 2.3).
    """

    name: str = MISSING
    architecture: str = "mistral"
    vocab_size: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING
    num_kv_heads: int = MISSING
    head_dim: int | None = None
    max_seq_len: int = MISSING
    sliding_window: int | None = None
    window_pattern: str | None = None
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init: str = "normal"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        one_of("model.init", self.init, INIT_SCHEMES)
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise InputError(
                    f"model.hidden_size={self.hidden_size}: expected a multiple of "
                    f"model.num_heads={self.num_heads}. Change one of them, or set model.head_dim."
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads={self.num_heads}: expected a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}, because every key-value head serves the "
                "same number of query heads. Change one of them."
            )
        if self.head_dim % 2:
            raise InputError(
                f"model.head_dim={self.head_dim}: expected an even number, because RoPE rotates "
                "pairs."
            )
        if not self.rope_theta > 0:
            raise InputError(f"model.rope_theta={self.rope_theta}: expected more than 0.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(
                f"model.sliding_window={self.sliding_window}: expected 1 or more, or null for full "
                "attention."
            )
        check_window_pattern(self.window_pattern, self.num_layers, self.sliding_window)
        # Equal layers get equal patterns, so that configs can be compared.
        self.window_pattern = shortest_pattern([layer.window for layer in self.layers])
        family_named(self.architecture).check(vars(self))

    @property
    def query_size(self) -> int:
        """Total width of the query heads, num_heads * head_dim."""
        assert self.head_dim is not None
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Total width of the key (or value) heads, num_kv_heads * head_dim."""
        assert self.head_dim is not None
        return self.num_kv_heads * self.head_dim

    @property
    def layers(self) -> list[LayerConfig]:
        """The settings of each layer, from the first to the last."""
        windows = layer_windows(self.window_pattern, self.num_layers, self.sliding_window)
        return [LayerConfig(window, self.rope_theta) for window in windows]

    @property
    def widest_window(self) -> int | None:
        """The widest window of any layer; None if any layer has full attention."""
        windows = [layer.window for layer in self.layers]
        return None if None in windows else self.sliding_window

    def describe_windows(self) -> str:
        """Returns the windows of the layers in words, such as `4096 in 6 of 8 layers`."""
        windowed = sum(layer.window is not None for layer in self.layers)
        if not windowed:
            return "none"
        partly = f" in {windowed} of {self.num_layers} layers" if self.window_pattern else ""
        return f"{self.sliding_window}{partly}"
