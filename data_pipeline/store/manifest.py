"""The manifest of a corpus folder, `manifest.json`, which describes the shards and their origin.

This module reads only local folders. `store.corpus.open_corpus` also opens object stores.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError

FILE = "manifest.json"
FORMAT = 2
ADDITIONS = "additions"
"""Folder in a corpus with one folder per edition after the first, named by its number."""
INDEX = "index"
"""Folder of an edition with digests and signatures of its documents (`dedup.index`)."""


@dataclass(frozen=True)
class Manifest:
    """Manifest of the corpus in `folder`.

    Attributes:
        folder: Local folder of the corpus; for a remote corpus, the local cache of its small files.
        name: Name of the corpus.
        inputs: The sha256 of everything that determines the content. A corpus whose inputs have not
            changed is not made again.
        tokenizer: `file`, `sha256` of its canonical JSON, `vocab_size`, `bos_id`, `eos_id` and
            `pad_id`.
        dtype: NumPy type of the token ids.
        splits: Shard entries by split and source. An entry holds `file` (path without suffix),
            `documents`, `tokens`, `bytes` (of text), `sha256` (of `.bin`), `idx_sha256`, and
            `sums` and `masked` (whether those files exist).
        sources: Counts per source: files, kept documents and bytes, and dropped documents by
            reason.
        ends_in_eos: True if a document starts after each EOS and nowhere else within a sequence, so
            that the ids alone determine the document boundaries.
        packed: Sequence lengths that documents were packed into; empty without packing.
        origin: `tokenize`, or `import` for shards made by another program.
        encoder: Name and version of the library that encoded the text, and counts of its checks.
        editions: One entry per preparation that wrote to the corpus, the oldest first; empty if
            there was only one. `number` counts from 1. `inputs`, `sources` and `encoder` are as
            above, but of that preparation alone. `shards` is the number of shards by split and
            source after it. Lists of shards only ever grow at their end.
    """

    folder: Path
    name: str
    inputs: str
    tokenizer: dict[str, Any]
    dtype: str
    splits: dict[str, dict[str, list[dict[str, Any]]]]
    sources: dict[str, dict[str, int]]
    ends_in_eos: bool = False
    packed: list[int] = field(default_factory=list)
    origin: str = "tokenize"
    encoder: dict[str, Any] = field(default_factory=dict)
    editions: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Returns the content of `manifest.json`."""
        fields = {key: value for key, value in asdict(self).items() if key != "folder"}
        if not self.editions:
            del fields["editions"]  # as in corpora of earlier versions
        return json.dumps({"format": FORMAT, **fields}, indent=1)

    @property
    def vocab_size(self) -> int:
        """Number of token ids of the tokenizer."""
        return int(self.tokenizer["vocab_size"])

    @property
    def tokenizer_path(self) -> Path:
        """Path of the corpus's `tokenizer.json`."""
        return self.folder / self.tokenizer["file"]

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 that identifies the data. It covers the tokenizer and the hashes of shards."""
        data = [self.tokenizer, self.dtype, self.splits]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    @property
    def edition_count(self) -> int:
        """Number of preparations that wrote to the corpus: the first one and every addition."""
        return max(1, len(self.editions))

    @property
    def edition_inputs(self) -> list[str]:
        """The `inputs` of every edition, the oldest first."""
        return [entry["inputs"] for entry in self.editions] or [self.inputs]

    def at_edition(self, number: int) -> Manifest:
        """Returns the manifest of the corpus as it was after its `number`-th preparation.

        Its shards are a prefix of those of each source, and its fingerprint is that of the corpus
        at that time. Raises InputError if there is no such edition.
        """
        if not 1 <= number <= self.edition_count:
            raise InputError(
                f"{self.folder} has no edition {number}. Choose one from 1 to {self.edition_count}."
            )
        if number == self.edition_count:
            return self
        kept, last = self.editions[:number], self.editions[number - 1]
        splits = {
            split: {name: self.shards(split, name)[:count] for name, count in counts.items()}
            for split, counts in last["shards"].items()
        }
        return replace(
            self,
            inputs=last["inputs"],
            splits=splits,
            sources=_total(entry["sources"] for entry in kept),
            encoder=last["encoder"],
            editions=kept,
        )

    def edition_folder(self, number: int) -> Path:
        """Returns the folder with the index and the cleaning report of an edition."""
        return self.folder if number == 1 else self.folder / ADDITIONS / f"{number:04}"

    def read_index(self, number: int) -> dict[str, Any] | None:
        """Returns the content of the index.json of an edition, or None if it has no index."""
        path = self.edition_folder(number) / INDEX / "index.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def find_edition(self, fingerprint: str) -> Manifest | None:
        """Returns the newest edition that has a fingerprint, or None."""
        editions = map(self.at_edition, range(self.edition_count, 0, -1))
        return next((found for found in editions if found.fingerprint == fingerprint), None)

    def extended(self, added: Manifest) -> Manifest:
        """Returns this manifest with one more edition, whose shards are those of `added`."""
        splits = {split: dict(sources) for split, sources in self.splits.items()}
        for split, sources in added.splits.items():
            for name, shards in sources.items():
                splits.setdefault(split, {})[name] = [*self.shards(split, name), *shards]
        editions = self.editions or [_edition(1, self, self.splits)]
        editions = [*editions, _edition(len(editions) + 1, added, splits)]
        return replace(
            self,
            inputs=added.inputs,
            splits=splits,
            sources=_total([self.sources, added.sources]),
            encoder=added.encoder,
            editions=editions,
        )

    def shards(self, split: str, source: str) -> list[dict[str, Any]]:
        """Returns the entries of a source's shards, in the order of the source's stream."""
        return self.splits.get(split, {}).get(source, [])

    def source_tokens(self, split: str) -> dict[str, int]:
        """Returns the number of tokens per source in a split."""
        sources = self.splits.get(split, {})
        return {name: sum(entry["tokens"] for entry in shards) for name, shards in sources.items()}

    def edition_tokens(self, split: str) -> list[dict[str, int]]:
        """Returns the number of tokens per source in a split of each edition, the oldest first."""
        numbers = range(1, self.edition_count + 1)
        return [self.at_edition(number).source_tokens(split) for number in numbers]

    def of_run(self, env: Mapping[str, Any]) -> Manifest | None:
        """Returns the newest edition that a run reads, or None if the corpus has changed since.

        env: content of the `env.json` of the run.
        """
        editions = [stage for stage in env.get("editions", []) if not stage.get("elsewhere")]
        read = [stage["data"] for stage in editions] or [env["data_fingerprint"]]
        found = [self.find_edition(fingerprint) for fingerprint in dict.fromkeys(read)]
        return found[-1] if None not in found else None

    def missing_files(self) -> list[str]:
        """Returns the names of the tokenizer, `.bin` and `.idx` files that do not exist."""
        names = [str(self.tokenizer["file"])]
        for sources in self.splits.values():
            for entry in (entry for shards in sources.values() for entry in shards):
                names += [f"{entry['file']}.bin", f"{entry['file']}.idx"]
        return [name for name in names if not (self.folder / name).is_file()]

    def token_bytes(self) -> NDArray[np.uint16]:
        """Returns the number of UTF-8 bytes per id, (vocab_size,); 0 for special tokens."""
        path = self.folder / "token_bytes.npy"
        if not path.is_file():
            raise InputError(f"{path} is missing. Tokenize the corpus again.")
        return np.load(path, allow_pickle=False)

    def check_tokenizer(self) -> None:
        """Raises InputError if the shards were made with another `tokenizer.json`."""
        if not self.tokenizer_path.is_file():
            raise InputError(f"{self.tokenizer_path} is missing. Tokenize the corpus again.")
        found = tokenizer_fingerprint(self.tokenizer_path)
        if found != self.tokenizer["sha256"]:
            raise InputError(
                f"{self.tokenizer_path} has the fingerprint {found[:16]}, but the tokenizer that "
                f"the shards were made with has {str(self.tokenizer['sha256'])[:16]}. Restore that "
                "tokenizer, or tokenize the corpus again."
            )


def _edition(number: int, preparation: Manifest, splits: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry of a preparation, after which the corpus has the shards `splits`."""
    return {
        "number": number,
        "inputs": preparation.inputs,
        "sources": preparation.sources,
        "encoder": preparation.encoder,
        "shards": {
            split: {name: len(shards) for name, shards in sources.items()}
            for split, sources in splits.items()
        },
    }


def _total(parts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Returns the sums of counts per source."""
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in total.items()}


def load_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest of a local corpus folder.

    Raises:
        InputError: The manifest is missing or has another format.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(
            f"{path} does not exist. Make the corpus with python -m data_pipeline tokenize "
            f"corpus=... out={folder}."
        )
    try:
        return manifest_of(Path(folder), path.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a manifest of a Headwater corpus ({error}). Tokenize the corpus again."
        ) from None


def manifest_of(folder: Path, content: str) -> Manifest:
    """Returns the manifest of a corpus folder, given the content of its `manifest.json`.

    Raises InputError if it has another format, and ValueError, KeyError or TypeError if it is not a
    manifest.
    """
    fields = json.loads(content)
    found = fields.pop("format")
    if found != FORMAT:
        raise InputError(
            f"{folder / FILE} has format {found}, but this version reads format {FORMAT}. Tokenize "
            "the corpus again."
        )
    return Manifest(folder=folder, **fields)


def tokenizer_fingerprint(path: Path) -> str:
    """Returns the sha256 of the canonical form of a tokenizer.json, whatever its formatting."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Give a tokenizer.json.") from None
    return content_fingerprint(content)


def content_fingerprint(content: Any) -> str:
    """Returns the sha256 of the canonical form of the content of a tokenizer.json."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
