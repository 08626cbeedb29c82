"""What the pieces of a tokenizer stand for, so that two tokenizers can be compared."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from conf.errors import InputError

ROLES = ("bos", "eos", "pad", "unk")
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_characters() -> dict[str, int]:
    """GPT-2's character for each byte, turned round: visible ones are themselves, the others the
    characters from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {chr(byte): byte for byte in visible}
    return characters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


BYTES = _byte_characters()
CHARACTERS = {byte: character for character, byte in BYTES.items()}


class Vocabulary:
    """The tokenizer of a Hugging Face folder, of a tokenized corpus, or a tokenizer.json.

    size: numbers that ids go up to, more than there are pieces where there are gaps.
    special: id of each of ROLES that it has.

    Raises InputError where there is none, or a special token is not in it.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent if path.is_file() else path
        self.file = path if path.is_file() else path / "tokenizer.json"
        if not self.file.is_file():
            raise InputError(
                f"{self.file} does not exist: expected a tokenizer.json (of a slow tokenizer, "
                "transformers makes one when it saves it)."
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(self.file))
        except Exception as error:
            raise InputError(f"{self.file} is not a tokenizer.json ({error}).") from None
        about = json.loads(self.file.read_text())
        self.ids: dict[str, int] = self.tokenizer.get_vocab()
        self.size = max(self.ids.values()) + 1
        self.added = {entry["content"]: entry["special"] for entry in about["added_tokens"]}
        types = json.dumps([about.get("decoder"), about.get("pre_tokenizer")])
        self.byte_level = '"ByteLevel"' in types
        self.special = self._special()

    def _special(self) -> dict[str, int]:
        found: dict[str, int] = {}
        manifest = _read(self.folder / "manifest.json").get("tokenizer", {})
        stated = _read(self.folder / "tokenizer_config.json")
        for role in ROLES:
            token = stated.get(f"{role}_token")
            token = token["content"] if isinstance(token, dict) else token
            if token is not None and token not in self.ids:
                raise InputError(
                    f"{self.folder / 'tokenizer_config.json'}: {role}_token={token} is not in "
                    f"{self.file.name}."
                )
            number = manifest.get(f"{role}_id") if token is None else self.ids[token]
            if number is not None:
                found[role] = number
        return found

    @cached_property
    def pieces(self) -> dict[int, str]:
        """The spelling of each id."""
        return {number: piece for piece, number in self.ids.items()}

    def meaning(self, piece: str) -> tuple[bool, bytes]:
        """Whether a piece is a special token, and the bytes of the text that it stands for."""
        if piece in self.added:
            return self.added[piece], piece.encode()
        if self.byte_level:
            return False, bytes(BYTES[character] for character in piece)
        if byte := BYTE_PIECE.fullmatch(piece):
            return False, bytes.fromhex(byte[1])
        return False, piece.replace("▁", " ").encode()

    def cut(self, text: bytes) -> list[int]:
        """Ids of the pieces that the model of the tokenizer cuts a piece of text into, empty where
        it has none for it. No normalizer has a say, which might add a space."""
        if self.byte_level:
            spelled = "".join(CHARACTERS[byte] for byte in text)
        else:
            try:
                spelled = text.decode().replace(" ", "▁")
            except UnicodeDecodeError:  # a part of a character
                known = (self.ids.get(f"<0x{byte:02X}>") for byte in text)
                return [number for number in known if number is not None]
        found: Any = self.tokenizer.model.tokenize(spelled)
        return [token.id for token in found if token.id != self.special.get("unk")]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
