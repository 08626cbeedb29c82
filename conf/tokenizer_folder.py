"""The files of a Hugging Face folder that describe its tokenizer, next to its tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import InputError

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL_TOKENS = "special_tokens_map.json"
ROLES = ("bos", "eos", "pad", "unk")
DEFAULT_TEMPLATE = "default"
"""Name of the template for conversations, if tokenizer_config.json lists several."""


def tokenizer_file(path: Path) -> Path:
    """Returns the tokenizer.json that a path names: the file itself, or the one in a folder."""
    return path / TOKENIZER if path.is_dir() else path


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json, or {} if there is none.

    Raises InputError if the file is not JSON.
    """
    return _read(folder / SETTINGS)


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Returns the spelling of the special token of each of the ROLES that a folder states."""
    stated = _read(folder / SPECIAL_TOKENS) | read_settings(folder)
    tokens = {role: stated.get(f"{role}_token") for role in ROLES}
    spelled = {
        role: token.get("content") if isinstance(token, dict) else token
        for role, token in tokens.items()
    }
    return {role: str(token) for role, token in spelled.items() if token is not None}


def read_template(folder: Path) -> str | None:
    """Returns the chat template of a folder, or None if there is none."""
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stated = read_settings(folder).get("chat_template")
    if isinstance(stated, list):
        stated = {entry["name"]: entry["template"] for entry in stated}.get(DEFAULT_TEMPLATE)
    return stated


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Copy the folder again.") from None
