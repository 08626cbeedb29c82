"""Training and loading a tokenizer, and how many bytes of text each id stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from conf.errors import InputError
from data_pipeline.text.corpus import TokenizerConfig


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A byte-level BPE with GPT-2's splitting into words: it encodes any text without loss.

    The special tokens have ids 0 (pad), 1 (bos) and 2 (eos), as Danube's.
    """
    special = [config.pad_token, config.bos_token, config.eos_token]
    smallest = len(special) + 256
    if config.vocab_size < smallest:
        raise InputError(
            f"tokenizer.vocab_size={config.vocab_size}, expected at least {smallest}: all bytes "
            "and the special tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json. Text that spells a special token is encoded as plain text, so that
    no document can forge the end of another."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(f"{path} is not a tokenizer.json of `tokenizers` ({error}).") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """Numbers that ids go up to: more than there are pieces where a vocabulary has gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def special_ids(tokenizer: Tokenizer, config: TokenizerConfig) -> dict[str, int]:
    """Ids of pad, bos and eos; raises InputError where the tokenizer lacks one."""
    ids = {}
    for name in ("pad", "bos", "eos"):
        piece = getattr(config, f"{name}_token")
        number = tokenizer.token_to_id(piece)
        if number is None:
            raise InputError(
                f"tokenizer.{name}_token={piece} is not in the vocabulary of {config.path}: name "
                "the token that it has."
            )
        ids[f"{name}_id"] = number
    return ids


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """UTF-8 bytes that each id stands for, (vocab_size,), 0 for special tokens.

    A byte-level piece has a character a byte; a byte-fallback piece `<0xE2>` is one byte, and in
    the others `▁` stands for a space. Added tokens are spelled as the text that they stand for.
    """
    about = json.loads(tokenizer.to_str())
    added = {entry["id"]: entry for entry in about["added_tokens"]}
    byte_level = "ByteLevel" in _types(about.get("decoder")) | _types(about.get("pre_tokenizer"))
    sizes = np.zeros(vocab_size_of(tokenizer), np.uint16)
    for piece, number in tokenizer.get_vocab().items():
        if number in added:
            sizes[number] = 0 if added[number]["special"] else len(piece.encode())
        elif byte_level:
            sizes[number] = len(piece)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            sizes[number] = 1
        else:
            sizes[number] = len(piece.replace("▁", " ").encode())
    return sizes


def _types(node: Any) -> set[str]:
    """All `type` entries inside a part of a tokenizer.json."""
    if isinstance(node, dict):
        found = {node["type"]} if isinstance(node.get("type"), str) else set()
        return found.union(*map(_types, node.values()))
    if isinstance(node, list):
        return set().union(*map(_types, node))
    return set()
