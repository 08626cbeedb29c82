"""The tokenizer of a GGUF file as the files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from conf.errors import InputError
from model.families.gguf import BYTE_LEVEL, GPT2_WORDS, PIECES, PRE_TYPES, WITH_BOS
from model.gguf.pipeline import SPACE
from model.gguf.vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot"}
"""Names of the roles of special tokens in a GGUF file; `eot` is a second end of an answer."""


def read_tokenizer(values: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """Returns the text of tokenizer.json, and the ids of the special tokens by role.

    Raises InputError if the tokenizer is none of those that Headwater writes.
    """
    stated = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in values.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, pre = stated.get("model"), stated.get("pre", "default")
    tokens, types = stated.get("tokens", []), stated.get("token_type", [])
    types = types or [NORMAL] * len(tokens)
    if kind == BYTE_LEVEL:
        tokenizer = _byte_level(pre, _vocabulary(tokens, types), stated.get("merges", []))
    elif kind == PIECES:
        tokenizer = _pieces(stated, tokens, types)
    else:
        raise _refused("model", kind, (BYTE_LEVEL, PIECES))
    for token, type in zip(tokens, types, strict=True):
        if type in (CONTROL, USER_DEFINED, UNKNOWN):
            special = type != USER_DEFINED
            added = AddedToken(token, normalized=False, special=special)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    ids = {role: stated.get(f"{name}_token_id") for role, name in ROLES.items()}
    special_ids = {role: number for role, number in ids.items() if number is not None}
    add_bos = stated.get("add_bos_token", pre in WITH_BOS)
    _add_ends(tokenizer, tokens, special_ids, [add_bos, stated.get("add_eos_token", False)])
    return tokenizer.to_str(), special_ids


def _refused(key: str, value: Any, known: Sequence[str]) -> InputError:
    return InputError(
        f"tokenizer.ggml.{key}={value}: expected one of {', '.join(known)}. Give the tokenizer of "
        "the original model with tokenizer=<folder>."
    )


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Returns the ids of tokens, without rows that no token has."""
    return {
        token: number
        for number, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type != UNUSED
    }


def _byte_level(pre: str, vocabulary: dict[str, int], merges: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer on bytes."""
    known = {name: steps for steps, name in PRE_TYPES.items()}
    if pre not in known:
        raise _refused("pre", pre, tuple(known))
    patterns, ignore_merges = known[pre]
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    pairs = [pair for pair in pairs if "".join(pair) in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns if one != GPT2_WORDS]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2_WORDS in patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(stated: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """Returns a tokenizer of SentencePiece's kind, whose merges are ordered by scores."""
    vocabulary = _vocabulary(tokens, types)
    scores = stated["scores"]
    merged = [number for number, type in enumerate(types) if type == NORMAL]
    ordered = sorted(merged, key=lambda number: (-scores[number], number))
    unknown = [token for token, type in zip(tokens, types, strict=True) if type == UNKNOWN]
    model = models.BPE(
        vocabulary,
        [pair for number in ordered for pair in _cuts(tokens[number], vocabulary)],
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    add_space = stated.get("add_space_prefix", True)
    start = [normalizers.Prepend(SPACE)] if add_space else []
    tokenizer.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", SPACE)])
    end = [decoders.Strip(" ", 1, 0)] if add_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *end]
    )
    return tokenizer


def _cuts(token: str, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yields the pairs of tokens that a token can be made of."""
    for at in range(1, len(token)):
        if token[:at] in vocabulary and token[at:] in vocabulary:
            yield token[:at], token[at:]


def _add_ends(
    tokenizer: Tokenizer, tokens: Sequence[str], ids: Mapping[str, int], wanted: Sequence[bool]
) -> None:
    """Adds BOS and EOS tokens to texts, where they are wanted and known."""
    bos, eos = (
        [(tokens[ids[role]], ids[role])] if is_wanted and role in ids else []
        for role, is_wanted in zip(("bos", "eos"), wanted, strict=True)
    )
    if bos or eos:
        single = [*(token for token, _ in bos), "$A", *(token for token, _ in eos)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[*bos, *eos]
        )
