"""Additions to a prepared corpus: their settings, and how they become part of the corpus.

An addition is prepared in `<corpus>.partial` like a corpus of its own. Its shards, index and
cleaning report become one new folder of the corpus, `additions/<edition>/`. Then the manifest is
replaced, the only file of the old corpus that changes. A process that is killed between these two
steps leaves `added.json` in the work folder, from which the next one finishes them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import discard, sync, sync_folder, write_text
from conf.tokenizer_folder import tokenizer_file
from data_pipeline.dedup import index
from data_pipeline.store.manifest import (
    FILE,
    Manifest,
    content_fingerprint,
    load_manifest,
    manifest_of,
)
from data_pipeline.store.storage import is_remote
from data_pipeline.text.corpus import CorpusConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.text.units import Unit, plan_units
from data_pipeline.tokenizing.tokenizer import ROLES, document_tokenizer, load_tokenizer
from data_pipeline.tokenizing.work import WorkFolder

ADDED = "added.json"
"""File in the work folder with the manifest of the corpus including a complete addition."""


def open_base(config: TokenizeConfig) -> Manifest:
    """Returns the manifest of the corpus to add to.

    Raises InputError if nothing can be added to it with these settings.
    """
    given = str(config.add_to)
    if is_remote(given):
        raise InputError(
            f"add_to={given}: the corpus is remote. Copy it to this machine, and upload the new "
            "files afterwards, manifest.json last."
        )
    base = load_manifest(given)
    if base.origin != "tokenize":
        raise InputError(
            f"add_to={given}: its shards were imported, so the text that new documents would be "
            "compared with and the rules it was encoded by are unknown. Tokenize a corpus of its "
            "own, or import the old and new shards together."
        )
    base.check_tokenizer()
    if sorted(config.corpus.fit) != base.packed:
        raise InputError(
            f"corpus.fit={sorted(config.corpus.fit)}: the documents of {given} were packed with "
            f"fit={base.packed}. Set corpus.fit={base.packed}."
        )
    if config.tokenizer.path:
        path = tokenizer_file(Path(config.tokenizer.path))
        load_tokenizer(path)  # raises InputError if there is none
        special = [*_special_tokens(base).values(), *config.tokenizer.extra_tokens]
        content, _ = document_tokenizer(path, special)
        if content_fingerprint(json.loads(content)) != base.tokenizer["sha256"]:
            raise InputError(
                f"tokenizer.path={path}: {given} was made with another tokenizer. Leave out the "
                "tokenizer keys to use the one of the corpus."
            )
    return base


def configure_addition(config: TokenizeConfig, base: Manifest, units: list[Unit]) -> TokenizeConfig:
    """Returns the settings with the tokenizer of the corpus, and only sources that have units.

    If `units` is empty, all sources are kept. Raises InputError if repeated paragraphs are removed.
    """
    if config.corpus.cleaning.dedup.paragraphs:
        raise InputError(
            f"corpus.cleaning.dedup.paragraphs=true: the paragraphs of {config.add_to} are not in "
            "its index, so those of new documents cannot be compared with them. Set it to false, "
            "or prepare the whole corpus again."
        )
    tokens = _special_tokens(base)
    tokenizer = TokenizerConfig(
        vocab_size=base.vocab_size,
        pad_token=tokens["pad"],
        bos_token=tokens["bos"],
        eos_token=tokens["eos"],
    )
    names = {unit.source for unit in units} or set(config.corpus.sources)
    sources = {name: part for name, part in config.corpus.sources.items() if name in names}
    corpus = replace(config.corpus, sources=sources, name=base.name)
    return replace(config, corpus=corpus, tokenizer=tokenizer)


def new_units(corpus: CorpusConfig, base: Manifest) -> list[Unit]:
    """Returns the units of the files that the corpus `base` was not made from.

    Datasets of Hugging Face are always read, because their names do not tell what they contain.
    """
    read = index.read_files(base)
    datasets = {name for name, part in corpus.sources.items() if part.format == "huggingface"}
    return plan_units(
        corpus, lambda name, file: name not in datasets and index.is_read(name, file, read)
    )


def record_addition(folder: WorkFolder, base: Manifest, added: Manifest) -> None:
    """Writes the manifest of the corpus with the shards of the work folder as its next edition."""
    place = base.edition_folder(base.edition_count + 1).relative_to(base.folder)

    def moved(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "file": f"{place.as_posix()}/{entry['file']}"}

    splits = {
        split: {name: [*map(moved, shards)] for name, shards in sources.items()}
        for split, sources in added.splits.items()
    }
    write_text(folder.path / ADDED, base.extended(replace(added, splits=splits)).to_json())


def finish_addition(folder: WorkFolder) -> bool:
    """Makes a complete addition part of its corpus. Returns False if there is none."""
    path = folder.path / ADDED
    if not path.is_file():
        return False
    grown, found = manifest_of(folder.out, path.read_text()), load_manifest(folder.out)
    if found != grown:
        number = grown.edition_count
        if (
            found.edition_count + 1 != number
            or found.fingerprint != grown.at_edition(number - 1).fingerprint
        ):
            return False
        place = grown.edition_folder(number)
        if folder.content.is_dir():
            discard(place)  # left by an addition whose work folder was removed
            sync(folder.content)
            place.parent.mkdir(exist_ok=True)
            folder.content.rename(place)
            sync_folder(place.parent)
        elif not place.is_dir():
            return False
        write_text(folder.out / FILE, grown.to_json())
    folder.remove()
    return True


def _special_tokens(base: Manifest) -> dict[str, str]:
    tokenizer = load_tokenizer(base.tokenizer_path)
    return {role: tokenizer.id_to_token(base.tokenizer[f"{role}_id"]) or "" for role in ROLES}
