"""Files that a run takes over from the Hugging Face folder `init_from`, so that exports have them.

These are the chat template, the settings of tokenizer and generation, and metadata for the card.
They are copied into the run folder at the first start. An export does not need `init_from`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import write_text
from conf.model_card import hub_name, inherited_metadata
from conf.tokenizer_folder import (
    SETTINGS,
    SPECIAL_TOKENS,
    TEMPLATE,
    TOKENIZER,
    read_settings,
    read_special_tokens,
    read_template,
)
from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.tokenizer import load_tokenizer

FOLDER = "init_from"
"""Folder of a run with the copies."""
GENERATION = "generation_config.json"
COPIED = (SETTINGS, SPECIAL_TOKENS, TEMPLATE, GENERATION)
FACTS = "origin.json"
KEPT_SETTINGS = (
    *("unk_token", "additional_special_tokens", "extra_special_tokens", "model_input_names"),
    *("padding_side", "truncation_side", "clean_up_tokenization_spaces"),
)
"""Keys of tokenizer_config.json that an export takes over. The others restate tokenizer.json, name
a class for it, or depend on the run."""


@dataclass(frozen=True)
class Origin:
    """The model that a run was continued from.

    Attributes:
        name: Name of the model, `owner/name` if it was downloaded into the cache of the Hub.
        folder: The folder with its files, or with their copies.
        card: Metadata for the front matter of a card.
    """

    name: str
    folder: Path
    card: dict[str, Any]

    @property
    def template(self) -> str | None:
        """The chat template of the model, or None."""
        return read_template(self.folder)

    @property
    def tokenizer_settings(self) -> dict[str, Any]:
        """The settings of its tokenizer that do not depend on the run."""
        found = read_settings(self.folder)
        return {key: found[key] for key in KEPT_SETTINGS if key in found}

    def special_tokens(self, of_corpus: dict[str, str]) -> dict[str, str]:
        """Returns the special token of each role, those of the corpus if the model states none."""
        stated = read_special_tokens(self.folder)
        stated.pop("unk", None)  # one of KEPT_SETTINGS
        return {"pad": of_corpus["pad"], **stated} if stated else of_corpus

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of its generation_config.json, {} if there is none."""
        path = self.folder / GENERATION
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_origin(folder: Path) -> Origin:
    """Returns the model of a Hugging Face folder."""
    return Origin(hub_name(folder) or folder.resolve().name, folder, inherited_metadata(folder))


def keep_origin(run_dir: Path, init_from: str) -> None:
    """Copies the files of `init_from` into the run folder."""
    target = run_dir / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    origin = _read_origin(Path(init_from))
    for name in COPIED:
        if (origin.folder / name).is_file():
            shutil.copyfile(origin.folder / name, target / name)
    write_text(target / FACTS, json.dumps({"name": origin.name, "card": origin.card}, indent=1))


def inherit_origin(run_dir: Path, trunk: str) -> None:
    """Copies the files of a branch from the run folder that it starts from, if that has any."""
    if (Path(trunk) / FOLDER / FACTS).is_file():
        shutil.copytree(Path(trunk) / FOLDER, run_dir / FOLDER, dirs_exist_ok=True)


def origin_of(run_dir: Path, init_from: str | None) -> Origin | None:
    """Returns the model that a run was continued from, or None if it began with random weights.

    Runs of earlier versions have no copies. Their files are read from `init_from`.
    """
    if (run_dir / FOLDER / FACTS).is_file():
        facts = json.loads((run_dir / FOLDER / FACTS).read_text())
        return Origin(facts["name"], run_dir / FOLDER, facts["card"])
    return None if init_from is None else _read_origin(Path(init_from))


def check_same_tokenizer(init_from: str, manifest: Manifest) -> None:
    """Raises InputError if ids stand for other tokens in the corpus than in the model.

    Special tokens may differ, since models have reserved ones for such changes. A folder without
    tokenizer.json is not checked.
    """
    path = Path(init_from) / TOKENIZER
    if not path.is_file():
        return
    theirs, ours = load_tokenizer(path), load_tokenizer(manifest.tokenizer_path)
    special = {
        number
        for one in (theirs, ours)
        for number, token in one.get_added_tokens_decoder().items()
        if token.special
    }
    known = {number: token for token, number in theirs.get_vocab().items()}
    different = [
        (number, token)
        for token, number in ours.get_vocab().items()
        if number not in special and known.get(number, token) != token
    ]
    if different:
        number, token = min(different)
        raise InputError(
            f"data.folder={manifest.folder}: its tokenizer is not that of init_from={init_from}. "
            f"For example, id {number} is {token!r} in the corpus and {known[number]!r} in the "
            "model. Tokenize the corpus with tokenizer=load "
            f"tokenizer.path={init_from}, or give the model the tokenizer of the corpus with "
            "python -m model remap_vocab."
        )
