"""The graphs of llama.cpp that compute the families, and its names of tokenizers.

Each adapter names the graph of a model (`Family.gguf`), or refuses it. A graph of llama.cpp has
its features built in, and ignores all others silently.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Graph:
    """A graph of llama.cpp, by the features that differ between graphs.

    Attributes:
        name: Its name, `general.architecture` in a GGUF file.
        interleaved_rope: Whether RoPE rotates neighbouring values of a head, so that the rows of
            queries and keys are stored in another order than in Hugging Face checkpoints.
        has_windows: Whether every n-th layer has full attention and the others a sliding window.
        local_yarn: Whether layers with the window stay unscaled when the others have YaRN.
        rope_factors: Whether a tensor may scale each frequency of RoPE, as `llama3` scaling needs.
        shares_head: Whether the head may be left out of the file if it is the embedding.
        splits_hidden: Whether heads have the size hidden_size / num_heads.
        no_rope_every: Every layer with this number, counted from 1, has no positions; 0 for none.
        caps_logits: Whether it reads the bound of the logits.
    """

    name: str
    interleaved_rope: bool = False
    has_windows: bool = False
    local_yarn: bool = False
    rope_factors: bool = False
    shares_head: bool = True
    splits_hidden: bool = False
    no_rope_every: int = 0
    caps_logits: bool = False


LLAMA = Graph("llama", interleaved_rope=True, rope_factors=True)

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The split of GPT-2, which `ByteLevel` has built in."""
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = _CASELESS + r"|\p{N}{1,3}" + _REST
ONE_DIGIT = _CASELESS + r"|\p{N}" + _REST

BYTE_LEVEL, PIECES = "gpt2", "llama"
"""Kinds of tokenizers, `tokenizer.ggml.model`: BPE on bytes, and BPE of SentencePiece."""

PRE_TYPES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2_WORDS,), False): "gpt-2",
    ((r"\p{N}", GPT2_WORDS), False): "smollm",
    ((THREE_DIGITS,), True): "llama-bpe",
    ((THREE_DIGITS,), False): "dbrx",
    ((ONE_DIGIT,), False): "qwen2",
}
"""Names of pre-tokenizers, `tokenizer.ggml.pre`, by what they do.

A key has the patterns that split a text one after the other, and whether words that are tokens
skip the merges.
"""
WITH_BOS = ("llama-bpe", "default")
"""Pre-tokenizers whose texts begin with BOS in llama.cpp if a file does not state it."""
