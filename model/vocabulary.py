"""The text that each token of a tokenizer stands for, so that two tokenizers can be compared."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from conf.errors import InputError

ROLES = ("bos", "eos", "pad", "unk")
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""Spelling of a single byte in SentencePiece vocabularies."""


def _byte_characters() -> dict[str, int]:
    """Returns the byte of each character in GPT-2's byte-level alphabet.

    Printable bytes stand for themselves. The others map to the characters from 256 upward.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_characters()
CHARACTERS = {byte: character for character, byte in BYTES.items()}


class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        folder: Folder of the tokenizer.
        file: Its tokenizer.json.
        size: Largest id + 1, which is more than the number of tokens if some ids are unused.
        special: Id of the special token for each of the ROLES that the tokenizer has.
    """

    def __init__(self, path: Path) -> None:
        """Reads a Hugging Face folder, a tokenized corpus, or a tokenizer.json.

        Raises InputError if there is no tokenizer, or if it lacks a special token.
        """
        self.folder = path.parent if path.is_file() else path
        self.file = path if path.is_file() else path / "tokenizer.json"
        if not self.file.is_file():
            raise InputError(
                f"{self.file} does not exist. Give a tokenizer.json. If the folder has a slow "
                "tokenizer, load and save it with transformers, which writes this file."
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(self.file))
        except Exception as error:
            raise InputError(
                f"{self.file} is not a tokenizer.json ({error}). Write the file again with "
                "the library tokenizers."
            ) from None
        content = json.loads(self.file.read_text())
        self.ids: dict[str, int] = self.tokenizer.get_vocab()
        self.size = max(self.ids.values()) + 1
        self._added = {entry["content"]: entry["special"] for entry in content["added_tokens"]}
        types = json.dumps([content.get("decoder"), content.get("pre_tokenizer")])
        self._byte_level = '"ByteLevel"' in types
        self.special = self._special()

    def _special(self) -> dict[str, int]:
        found: dict[str, int] = {}
        manifest = _read(self.folder / "manifest.json").get("tokenizer", {})
        settings = _read(self.folder / "tokenizer_config.json")
        for role in ROLES:
            token = settings.get(f"{role}_token")
            token = token["content"] if isinstance(token, dict) else token
            if token is not None and token not in self.ids:
                raise InputError(
                    f"{self.folder / 'tokenizer_config.json'}: {role}_token={token} is not in "
                    f"{self.file.name}. Change this key, or add the token."
                )
            number = manifest.get(f"{role}_id") if token is None else self.ids[token]
            if number is not None:
                found[role] = number
        return found

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The spelling of each token, by id."""
        return {number: token for token, number in self.ids.items()}

    @property
    def special_names(self) -> list[str]:
        """Spellings of all special tokens, with or without a role."""
        return [token for token, special in self._added.items() if special]

    def meaning(self, token: str) -> tuple[bool, bytes]:
        """Returns (True if the token is special, the bytes of the text that it stands for)."""
        if token in self._added:
            return self._added[token], token.encode()
        if self._byte_level:
            return False, bytes(BYTES[character] for character in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return False, bytes.fromhex(byte[1])
        return False, token.replace("▁", " ").encode()

    def split(self, text: bytes) -> list[int]:
        """Splits the text of another tokenizer's token, and returns the ids of the parts.

        The list is empty if the tokenizer has no tokens for the text. The normalizer is not
        applied, as it might add a space.
        """
        if self._byte_level:
            spelled = "".join(CHARACTERS[byte] for byte in text)
        else:
            try:
                spelled = text.decode().replace(" ", "▁")
            except UnicodeDecodeError:  # part of a character
                known = (self.ids.get(f"<0x{byte:02X}>") for byte in text)
                return [number for number in known if number is not None]
        found: Any = self.tokenizer.model.tokenize(spelled)
        return [token.id for token in found if token.id != self.special.get("unk")]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
