"""Trains and loads tokenizers, and counts the bytes of text that each token id represents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from conf.errors import InputError
from conf.tokenizer_folder import SETTINGS, read_special_tokens, tokenizer_file
from data_pipeline.text.corpus import TokenizerConfig

MAX_WORD_BYTES = 2000
"""Length in bytes at which words are cut in the text that a tokenizer is trained on.

Training time grows with the square of a word's length. No word of a natural language is this long.
"""

ROLES = ("pad", "bos", "eos")
"""Roles of the special tokens."""
DEFAULT_TOKENS = {"pad": "<unk>", "bos": "<s>", "eos": "</s>"}
"""Special tokens of a given tokenizer whose folder states none."""
TOKEN_ADDING_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""Post-processors that add special tokens around a text."""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Trains a byte-level BPE with GPT-2's word splitting, which can represent any text.

    The special tokens have ids 0 (pad), 1 (bos) and 2 (eos), as in the Danube models, and
    `extra_tokens` the next ones.
    """
    check_vocab_size(config)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.FixedLength(MAX_WORD_BYTES)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*config.special_tokens(), *config.extra_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_vocab_size(config: TokenizerConfig) -> None:
    """Raises InputError if the vocabulary is too small for all bytes and the special tokens."""
    smallest = len(config.special_tokens()) + len(config.extra_tokens) + 256
    if config.vocab_size < smallest:
        raise InputError(
            f"tokenizer.vocab_size={config.vocab_size}: expected {smallest} or more, for all bytes "
            "and the special tokens."
        )


def settle_tokenizer(config: TokenizerConfig) -> TokenizerConfig:
    """Returns the config with the tokenizer.json of a folder, and without tokens that are null.

    A tokenizer without a token for the beginning of a text takes its eos_token for it, and one
    without a token for padding its unk_token or eos_token.

    Raises InputError if the folder of the tokenizer states special tokens, but no eos_token.
    """
    given = {role: getattr(config, f"{role}_token") for role in ROLES}
    path = config.path and tokenizer_file(Path(config.path))
    if None in given.values():
        stated = read_special_tokens(path.parent) if path else {}
        eos = given["eos"] or stated.get("eos")
        if stated and eos is None:
            raise InputError(
                f"tokenizer.eos_token=null: {path and path.parent / SETTINGS} has no eos_token. "
                "Give the token that ends a document."
            )
        known = {"bos": eos, "pad": stated.get("unk", eos), **stated} if stated else DEFAULT_TOKENS
        given = {role: token or known[role] for role, token in given.items()}
    tokens = {f"{role}_token": token for role, token in given.items()}
    return replace(config, path=str(path) if path else None, **tokens)


def check_tokenizer(config: TokenizerConfig) -> None:
    """Raises InputError if the configured tokenizer cannot be trained or used.

    This reads no text of the corpus, so it can run before any other work.
    """
    if config.path is None:
        check_vocab_size(config)
        return
    path = Path(config.path)
    if not path.is_file():
        raise InputError(
            f"tokenizer.path={path}: no such file. Give a tokenizer.json, or a folder that has one."
        )
    given = load_tokenizer(path)
    for token in config.extra_tokens:
        if given.token_to_id(token) is None:
            raise InputError(
                f"tokenizer.extra_tokens={list(config.extra_tokens)}: '{token}' is not in the "
                f"vocabulary of {path}. Choose a token of that vocabulary, or train a tokenizer."
            )
    ids = special_ids(given, config)
    pieces = dict(zip(ROLES, config.special_tokens(), strict=True))
    content, _ = document_tokenizer(path, [*pieces.values(), *config.extra_tokens])
    tokenizer = _set_document_options(Tokenizer.from_str(content))
    listed = {token["content"] for token in _added_tokens(path) if token["special"]}
    for role in ROLES:
        piece, number = pieces[role], ids[f"{role}_id"]
        # The spelling of a byte-level piece differs from the text that it decodes to.
        texts = (piece, given.decode([number], skip_special_tokens=False))
        if piece not in listed and any(number in tokenizer.encode(text).ids for text in texts):
            raise InputError(
                f"tokenizer.{role}_token={piece}: this token of {path} also encodes ordinary text. "
                "Choose a token that does not."
            )


def document_tokenizer(
    path: Path, special: Iterable[str], keep_added: bool = False
) -> tuple[str, list[str]]:
    """Returns the tokenizer.json to encode documents with, and the tokens that it no longer adds.

    It is a copy of the one at `path` that marks the tokens in `special` as special, neither
    truncates nor pads texts, and adds no tokens to them unless `keep_added` is set. If nothing has
    to change, the text of the file is returned as it is.
    """
    text = path.read_text()
    content = json.loads(text)
    omitted: list[str] = []
    tokenizer = load_tokenizer(path)
    if tokenizer.num_special_tokens_to_add(False) and not keep_added:
        omitted = tokenizer.encode("").tokens
        content["post_processor"] = _without_tokens(content["post_processor"])
    content |= {key: None for key in ("truncation", "padding") if content.get(key)}
    content["added_tokens"] = _with_special(content["added_tokens"], special, tokenizer)
    return (text if content == json.loads(text) else json.dumps(content, indent=2)), omitted


def _with_special(
    added: list[dict[str, Any]], special: Iterable[str], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Returns the added tokens plus those in `special`, which are marked as special."""
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    found = {token["content"]: token for token in added}
    for piece in special:
        new = {"id": tokenizer.token_to_id(piece), "content": piece, **settings}
        found[piece] = {**found.get(piece, new), "special": True}
    return sorted(found.values(), key=lambda token: token["id"])


def _without_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns a post-processor without the parts that add tokens, or None if nothing remains."""
    if processor is None or processor["type"] in TOKEN_ADDING_PROCESSORS:
        return None
    if processor["type"] != "Sequence":
        return processor
    parts = [kept for part in processor["processors"] if (kept := _without_tokens(part))]
    return {**processor, "processors": parts} if parts else None


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["added_tokens"]


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer.json for encoding documents.

    Text that spells a special token is encoded as plain text, because otherwise a document could
    contain a forged EOS. Raises InputError if the file is missing or is not a tokenizer.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Give a tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(
            f"{path} is not a tokenizer.json of the library tokenizers ({error}). Give another "
            "file."
        ) from None
    return _set_document_options(tokenizer)


def _set_document_options(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """Returns the largest id plus one, which exceeds the number of tokens if the ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def special_ids(
    tokenizer: Tokenizer, config: TokenizerConfig, group: str = "tokenizer."
) -> dict[str, int]:
    """Returns `pad_id`, `bos_id` and `eos_id`.

    Raises InputError if one of these tokens is not in the vocabulary. `group` is the prefix of the
    config keys in that error.
    """
    pieces = dict(zip(ROLES, config.special_tokens(), strict=True))
    ids: dict[str, int] = {}
    for role in reversed(ROLES):  # eos first, because the others may default to it
        number = tokenizer.token_to_id(pieces[role])
        if number is None:
            raise InputError(
                f"{group}{role}_token={pieces[role]}: not in the vocabulary of {config.path}. "
                "Choose a token of that vocabulary."
            )
        ids[role] = number
    return {f"{role}_id": ids[role] for role in ROLES}


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """Returns the number of UTF-8 bytes per id, (vocab_size,), which is 0 for special tokens.

    In a byte-level vocabulary, a token has one character per byte. In a vocabulary with byte
    fallback, a token such as `<0xE2>` is one byte, and `▁` in any other token is a space. Added
    tokens are spelled as plain text.
    """
    content = json.loads(tokenizer.to_str())
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    types = _types(content.get("decoder")) | _types(content.get("pre_tokenizer"))
    byte_level = "ByteLevel" in types
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
    """Returns the values of all `type` keys in a part of a tokenizer.json, at any depth."""
    if isinstance(node, dict):
        found = {node["type"]} if isinstance(node.get("type"), str) else set()
        return found.union(*map(_types, node.values()))
    if isinstance(node, list):
        return set().union(*map(_types, node))
    return set()
