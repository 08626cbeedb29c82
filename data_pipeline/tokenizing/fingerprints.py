"""The fingerprints by which finished work is recognized."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.dedup import index
from data_pipeline.store.manifest import tokenizer_fingerprint
from data_pipeline.text.corpus import TokenizeConfig
from data_pipeline.text.selection import chain_of
from data_pipeline.text.units import Unit

FORMAT = 2
"""Version of the output, incremented whenever a change of the code changes the shards."""

NOT_SCANNED = ("name", "held_out_fraction", "fit")
"""Keys of the corpus config that the phases up to merge do not depend on."""


def fingerprint_inputs(config: TokenizeConfig, units: list[Unit]) -> tuple[str, str]:
    """Returns two fingerprints: of the inputs of all phases, and of those up to merge only.

    They cover the settings, the models of the cleaning steps, and the name, size and modification
    time of every file, but not the text itself.
    """
    corpus = asdict(config.corpus)
    for source in corpus["sources"].values():
        del source["max_malformed"]  # raising the limit must not discard finished work
    options = config.corpus.cleaning.dedup
    del corpus["cleaning"]["dedup"]["task_bytes"]  # does not change the result
    del corpus["cleaning"]["dedup"]["against"]  # what these corpora contain counts, not their paths
    _drop_unused(corpus)
    inputs: dict[str, Any] = {
        "format": FORMAT,
        "corpus": corpus,
        "tokenizer": asdict(config.tokenizer),
        "files": [
            (unit.source, file.name, file.bytes, file.version, unit.start)
            for unit in units
            for file in unit.files
        ],
        "cleaning": [
            chain.fingerprint()
            for source in config.corpus.sources
            if (chain := chain_of(config.corpus, source)) is not None
        ],
    }
    if not config.tokenizer.extra_tokens:
        del inputs["tokenizer"]["extra_tokens"]  # older corpora stay up to date
    if options.against:
        inputs["against"] = index.against_fingerprints(options)
    if not config.keep_index:
        inputs["keep_index"] = False
    names = ("format", "files", "cleaning", "against")
    scanned = {key: inputs[key] for key in names if key in inputs}
    scanned["corpus"] = {key: corpus[key] for key in corpus if key not in NOT_SCANNED}
    if config.tokenizer.path:
        inputs["tokenizer_sha256"] = tokenizer_fingerprint(Path(config.tokenizer.path))
    return digest_of(inputs), digest_of(scanned)


def _drop_unused(corpus: dict[str, Any]) -> None:
    """Removes keys that were added later and have no effect, so that older corpora stay up to date.

    The options of cleaning steps are part of the fingerprint of the source's chain.
    """
    cleaning = corpus["cleaning"]
    del cleaning["url_blocklist"]
    dedup = cleaning["dedup"]
    added = ("url_field", "min_chars", "max_chars")
    unused = [(source, [key]) for source in corpus["sources"].values() for key in added]
    unused += [(dedup, ["url"]), (dedup, [key for key in dedup if key.startswith("paragraph")])]
    for section, keys in unused:
        if not section[keys[0]]:
            for key in keys:
                del section[key]


def digest_of(content: dict[str, Any]) -> str:
    """Returns the sha256 of the canonical JSON of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
