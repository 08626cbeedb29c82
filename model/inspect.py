"""The command `python -m model inspect`, which computes the cost of a model from its shape."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from conf.errors import InputError
from conf.text import GIB
from model.config import ModelConfig
from model.flops import FLOP_CONVENTION, flops_per_token, matmul_parameters, parameters
from model.norms import describe_norms, describe_scales
from model.parametrization import describe_parametrization


@dataclass
class InspectConfig:
    """Configuration of `model inspect`.

    model: the shape of the model.
    seq_len: sequence length in tokens; null for model.max_seq_len.
    """

    model: ModelConfig = MISSING
    seq_len: int | None = None


def inspect(config: InspectConfig) -> None:
    """Prints the parameters, FLOPs per token and memory of a model."""
    model = config.model
    seq_len = config.seq_len or model.max_seq_len
    if not 1 <= seq_len <= model.max_seq_len:
        raise InputError(
            f"seq_len={seq_len}: expected 1 to {model.max_seq_len} (model.max_seq_len)."
        )
    total = parameters(model)
    flops = flops_per_token(model, seq_len)
    attention = flops - 6 * matmul_parameters(model)
    layer_kv_bytes = 2 * 2 * model.kv_size
    cached = sum(min(seq_len, layer.window or seq_len) for layer in model.layers)
    rows = [
        ("parameters", f"{total:,}"),
        ("- input embedding", f"{model.vocab_size * model.hidden_size:,}"),
        ("- in matrix products, head included", f"{matmul_parameters(model):,}"),
        ("layers x hidden", f"{model.num_layers} x {model.hidden_size}"),
        (
            "heads / KV heads x head dim",
            f"{model.num_heads} / {model.num_kv_heads} x {model.head_dim}",
        ),
        ("sliding window", model.describe_windows()),
        ("positions", model.describe_positions()),
        ("norms", describe_norms(model)),
        ("activation and scales", describe_scales(model)),
        ("parametrization", describe_parametrization(model)),
        (f"training FLOPs per token at {seq_len}", f"{flops / 1e9:.3f} G"),
        ("- share of attention", f"{attention / flops:.1%}"),
        ("weights, bf16", f"{2 * total / GIB:.2f} GiB"),
        ("training state, fp32 weight + gradient + AdamW", f"{16 * total / GIB:.2f} GiB"),
        ("KV cache per token, bf16", f"{model.num_layers * layer_kv_bytes:,} bytes"),
        (
            f"KV cache of a sequence of {seq_len}",
            f"{layer_kv_bytes * cached / 2**20:.1f} MiB",
        ),
    ]
    table = Table(title=model.name, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"FLOPs: {FLOP_CONVENTION}", style="dim", highlight=False)
