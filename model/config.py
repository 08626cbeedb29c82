"""The shape of a decoder, as set in `conf/model/*.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from omegaconf import MISSING

from conf.errors import InputError, one_of
from model.families import DEFAULT, family_named
from model.layer_pattern import (
    check_rope_pattern,
    check_window_pattern,
    layer_positions,
    layer_windows,
    rope_pattern,
    shortest_pattern,
)
from model.parametrization import check_parametrization
from model.rope_scaling import Rope, RopeScaling

INIT_SCHEMES = ("normal", "scaled_residual")
NORM_ORDERS = ("before", "after", "both")
QK_NORM_WIDTHS = ("head", "projection")
ACTIVATIONS = ("silu", "gelu_tanh")


class LayerConfig(NamedTuple):
    """Settings that may differ from layer to layer.

    Attributes:
        window: Number of keys that a query sees, itself included; None for full attention.
        rope: Base and scaling of the rotary positions; None for a layer without positions.
    """

    window: int | None
    rope: Rope | None


@dataclass
class ModelConfig:
    """A decoder with RMSNorm, RoPE, grouped-query attention and a gated MLP.

    architecture: the Hugging Face family of the export, one of `model.families`. Each family
        supports some of the features below and rejects the others.
    sliding_window: number of keys that a token sees, itself included; null for full attention.
    window_pattern: which layers have the sliding window (L) and which have full attention (G), as
        in LLLG, repeated over the layers; null if all layers are the same.
    norm_order: where a block has norms: `before` attention and the MLP, `after` them (on their
        output, before it is added to the residual stream), or `both`.
    zero_centered_norms: whether norms multiply by 1 + weight instead of weight.
    qk_norm: whether queries and keys are normalized before RoPE.
    qk_norm_width: what qk_norm normalizes: each `head`, or the whole `projection` of all heads.
    qkv_bias: whether the projections of queries, keys and values have biases.
    head_gates: whether the output of each attention head is multiplied by a sigmoid gate that is
        computed from the input of attention (arXiv 2505.06708).
    query_pre_attn_scalar: attention scores are divided by its square root; null for head_dim.
    activation: activation of the MLP's gate, `silu` or `gelu_tanh` (GELU by its tanh formula).
    scale_embeddings: whether embeddings are multiplied by sqrt(hidden_size).
    logit_softcap: bound c of the logits, which become c * tanh(logits / c); null for none.
    rope_theta: base of the rotary positions (RoPE).
    rope_scaling: scaling of the rotary positions for longer sequences.
    local_rope_theta: base of the rotary positions in the layers with the sliding window, which
        then have no scaling; null if rope_theta and rope_scaling apply to all layers.
    rope_pattern: which layers have rotary positions (R) and which have no positions (N), as in
        RRRN, repeated over the layers; null if all layers have rotary positions.
    init: initialization of the matrices. `normal` draws each one with a mean of 0 and a standard
        deviation of initializer_range; `scaled_residual` then divides the two matrices of a block
        that write into the residual stream by sqrt(2 * num_layers) (GPT-2, section 2.3).
    parametrization: how learning rates, initialization and activations depend on width and depth:
        `standard`, or `completep`, with which the learning rate of a small base model also fits
        larger ones (`model.parametrization`).
    base_hidden_size: hidden_size of the base model of completep.
    base_num_layers: num_layers of the base model of completep.
    base_head_dim: head_dim of the base model of completep; null if it is the same.
    """

    name: str = MISSING
    architecture: str = DEFAULT
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
    norm_order: str = "before"
    zero_centered_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    qk_norm_width: str = "head"
    head_gates: bool = False
    query_pre_attn_scalar: float | None = None
    activation: str = "silu"
    scale_embeddings: bool = False
    logit_softcap: float | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    local_rope_theta: float | None = None
    rope_pattern: str | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init: str = "normal"
    initializer_range: float = 0.02
    parametrization: str = "standard"
    base_hidden_size: int | None = None
    base_num_layers: int | None = None
    base_head_dim: int | None = None

    def __post_init__(self) -> None:
        one_of("model.init", self.init, INIT_SCHEMES)
        one_of("model.norm_order", self.norm_order, NORM_ORDERS)
        one_of("model.qk_norm_width", self.qk_norm_width, QK_NORM_WIDTHS)
        one_of("model.activation", self.activation, ACTIVATIONS)
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
        self._check_rope()
        for key in ("query_pre_attn_scalar", "logit_softcap"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise InputError(f"model.{key}={value}: expected more than 0, or null.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(
                f"model.sliding_window={self.sliding_window}: expected 1 or more, or null for full "
                "attention."
            )
        if self.query_pre_attn_scalar == self.head_dim:
            self.query_pre_attn_scalar = None  # equal models get equal configs
        check_window_pattern(self.window_pattern, self.num_layers, self.sliding_window)
        # Equal layers get equal patterns, so that configs can be compared.
        self.window_pattern = shortest_pattern([layer.window for layer in self.layers])
        family_named(self.architecture).check(vars(self))
        check_parametrization(self)

    def _check_rope(self) -> None:
        """Raises InputError if a setting of the positions is invalid."""
        if not self.rope_theta > 0:
            raise InputError(f"model.rope_theta={self.rope_theta}: expected more than 0.")
        if self.local_rope_theta is not None and not self.local_rope_theta > 0:
            raise InputError(
                f"model.local_rope_theta={self.local_rope_theta}: expected more than 0, or null "
                "for model.rope_theta."
            )
        if isinstance(self.rope_scaling, Mapping):  # read from a file of a run
            self.rope_scaling = RopeScaling(**self.rope_scaling)
        self.rope_scaling.check("model.rope_scaling")
        check_rope_pattern(self.rope_pattern, self.num_layers)
        self.rope_pattern = rope_pattern(layer_positions(self.rope_pattern, self.num_layers))

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
    def query_norm_size(self) -> int:
        """Number of weights of the queries' norm."""
        assert self.head_dim is not None
        return self.head_dim if self.qk_norm_width == "head" else self.query_size

    @property
    def key_norm_size(self) -> int:
        """Number of weights of the keys' norm."""
        assert self.head_dim is not None
        return self.head_dim if self.qk_norm_width == "head" else self.kv_size

    @property
    def layers(self) -> list[LayerConfig]:
        """The settings of each layer, from the first to the last."""
        windows = layer_windows(self.window_pattern, self.num_layers, self.sliding_window)
        everywhere = Rope(self.rope_theta, self.rope_scaling if self.rope_scaling.type else None)
        local = everywhere if self.local_rope_theta is None else Rope(self.local_rope_theta)
        return [
            LayerConfig(window, (everywhere if window is None else local) if rotary else None)
            for window, rotary in zip(
                windows, layer_positions(self.rope_pattern, self.num_layers), strict=True
            )
        ]

    def has_full_attention(self, seq_len: int) -> bool:
        """Returns whether any layer attends to all tokens of sequences of this length."""
        return any(layer.window is None or layer.window >= seq_len for layer in self.layers)

    def describe_windows(self) -> str:
        """Returns the windows of the layers in words, such as `4096 in 6 of 8 layers`."""
        windowed = sum(layer.window is not None for layer in self.layers)
        if not windowed:
            return "none"
        partly = f" in {windowed} of {self.num_layers} layers" if self.window_pattern else ""
        return f"{self.sliding_window}{partly}"

    def describe_positions(self) -> str:
        """Returns the positions of the layers in words, such as `RoPE base 10,000`."""
        layers: dict[str, int] = {}
        for layer in self.layers:
            name = "no positions" if layer.rope is None else layer.rope.describe()
            layers[name] = layers.get(name, 0) + 1
        if len(layers) == 1:
            return next(iter(layers))
        return ", ".join(
            f"{name} in {count} of {self.num_layers} layers" for name, count in layers.items()
        )
