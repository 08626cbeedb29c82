"""The shape of a model as metadata of a GGUF file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conf.errors import InputError
from model.config import ModelConfig
from model.families.gguf import Graph
from model.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from gguf import GGUFWriter


def check_graph(config: ModelConfig, graph: Graph) -> None:
    """Raises InputError if a graph of llama.cpp would compute something else than the model."""
    name = f"the graph '{graph.name}' of llama.cpp"
    if graph.splits_hidden and config.query_size != config.hidden_size:
        raise _refused("head_dim", config, f"{name} has heads of hidden_size / num_heads")
    scaling = config.rope_scaling
    if scaling.type == "llama3" and not graph.rope_factors:
        raise _refused("rope_scaling.type", config, f"{name} does not have this scaling")
    if scaling.type == "yarn":
        if not scaling.truncate:
            raise _refused("rope_scaling.truncate", config, "llama.cpp always rounds the ramp")
        for key in ("beta_fast", "beta_slow"):
            if getattr(scaling, key) != getattr(RopeScaling(), key):
                raise _refused(
                    f"rope_scaling.{key}", config, "llama.cpp does not read it from files"
                )
        if config.sliding_window is not None and graph.has_windows and not graph.local_yarn:
            raise _refused("rope_scaling.type", config, f"{name} would scale layers with a window")
    every = graph.no_rope_every
    for number, layer in enumerate(config.layers, 1):
        if (layer.rope is None) != (every > 0 and number % every == 0):
            raise _refused(
                "rope_pattern",
                config,
                f"{name} has layers without positions only as every {every}th layer",
            )
    if graph.has_windows:
        window_period(config, graph)


def _refused(key: str, config: ModelConfig, reason: str) -> InputError:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return InputError(f"model.{key}={value}: {reason}. Serve the folder with transformers or vLLM.")


def window_period(config: ModelConfig, graph: Graph) -> int:
    """Returns n if every n-th layer has full attention and the others a window; 0 for no full one.

    Raises InputError if the layers with a window are not of this pattern.
    """
    windowed = [layer.window is not None for layer in config.layers]
    for period in (0, *range(1, len(windowed) + 1)):
        if windowed == [not period or (i + 1) % period > 0 for i in range(len(windowed))]:
            return period
    raise _refused(
        "window_pattern",
        config,
        f"the graph '{graph.name}' of llama.cpp has full attention only in every n-th layer",
    )


def context_length(config: ModelConfig, graph: Graph) -> int:
    """Returns the context length that llama.cpp computes correctly, in tokens.

    Without windows in the graph, this is at most the window.
    """
    window = None if graph.has_windows else config.sliding_window
    return min(config.max_seq_len, window or config.max_seq_len)


def query_factor(config: ModelConfig) -> float:
    """Returns the factor of the queries that llama.cpp does not apply, 1 for none.

    llama.cpp divides scores by sqrt(head_dim), whatever the model states.
    """
    assert config.head_dim is not None
    return math.sqrt(config.head_dim / (config.query_pre_attn_scalar or config.head_dim))


def write_metadata(writer: GGUFWriter, config: ModelConfig, graph: Graph) -> None:
    """Adds the shape of a model to a GGUF file."""
    assert config.head_dim is not None
    writer.add_context_length(context_length(config, graph))
    writer.add_block_count(config.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, config)
    if graph.has_windows and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(window_period(config, graph))
        writer.add_rope_freq_base_swa(config.local_rope_theta or config.rope_theta)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)


def _write_rope(writer: GGUFWriter, config: ModelConfig) -> None:
    """Adds the rotary positions; the factors of `llama3` scaling are a tensor."""
    from gguf import RopeScalingType

    assert config.head_dim is not None
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling.type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling.type == "yarn":
        assert scaling.original_max_seq_len is not None
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_seq_len)
        if scaling.attention_factor is not None:
            plain = 0.1 * math.log(scaling.factor) + 1.0
            writer.add_rope_scaling_attn_factors(scaling.attention_factor / plain)
