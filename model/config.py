"""The shape of a decoder, as `conf/model/*.yaml` states it."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from conf.errors import InputError

HF_ARCHITECTURES = ("mistral", "llama")
INIT_SCHEMES = ("normal", "scaled_residual")


@dataclass
class ModelConfig:
    """A pre-norm decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    sliding_window: a token sees this many keys, itself included; None for full attention.
    init: `normal` draws every matrix from N(0, initializer_range); `scaled_residual` divides the
        two matrices that write into the residual stream by sqrt(2 * num_layers) (GPT-2, 2.3).
    architecture: the Hugging Face class of the export, `mistral` or `llama`. Only `mistral`
        carries a sliding window.
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
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init: str = "normal"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.architecture not in HF_ARCHITECTURES:
            raise InputError(
                f"model.architecture is '{self.architecture}', expected one of "
                f"{', '.join(HF_ARCHITECTURES)}."
            )
        if self.init not in INIT_SCHEMES:
            raise InputError(
                f"model.init is '{self.init}', expected one of {', '.join(INIT_SCHEMES)}."
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise InputError(
                    f"model.hidden_size={self.hidden_size} is not a multiple of "
                    f"model.num_heads={self.num_heads}: set model.head_dim or change one of them."
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}: every key-value head serves the same "
                "number of query heads."
            )
        if self.head_dim % 2:
            raise InputError(
                f"model.head_dim={self.head_dim} is odd, RoPE rotates pairs: make it even."
            )
        if not self.rope_theta > 0:
            raise InputError(f"model.rope_theta={self.rope_theta}, expected more than 0.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(
                f"model.sliding_window={self.sliding_window}, expected at least 1, or null for "
                "full attention."
            )
        if self.sliding_window is not None and self.architecture == "llama":
            raise InputError(
                "model.sliding_window is set but model.architecture=llama has none: use mistral."
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads together, num_heads * head_dim."""
        assert self.head_dim is not None
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together, num_kv_heads * head_dim."""
        assert self.head_dim is not None
        return self.num_kv_heads * self.head_dim
