"""What a folder of shards holds and what it was made from: `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.store.storage import is_remote

FILE = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """The manifest of the corpus in `folder`.

    inputs: sha256 of everything that decides the content; the same inputs are not made again.
    tokenizer: file, sha256 (of its canonical JSON), vocab_size, bos_id, eos_id, pad_id.
    splits: shards by split and source, each with file (path without ending), documents, tokens,
        bytes (of text), sha256 (of .bin), idx_sha256, sums and masked (whether those files are
        there).
    sources: what was read of each: files, documents, bytes, and what was left out, by reason.
    ends_in_eos: a document begins after each EOS and nowhere else inside a sequence, so that
        borders can be told from the ids alone. packed: lengths that documents were fitted into.
    origin: `tokenize`, or `import` for shards that others made. encoder: what turned text to ids.
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

    def to_json(self) -> str:
        """The content of `manifest.json`."""
        fields = {key: value for key, value in asdict(self).items() if key != "folder"}
        return json.dumps({"format": FORMAT, **fields}, indent=1)

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""
        return int(self.tokenizer["vocab_size"])

    @property
    def tokenizer_path(self) -> Path:
        """Where `tokenizer.json` lies."""
        return self.folder / self.tokenizer["file"]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of tokenizer and shards, their hashes included: that of the data itself."""
        data = [self.tokenizer, self.dtype, self.splits]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def shards(self, split: str, source: str) -> list[dict[str, Any]]:
        """Entries of a source's shards, in the order of its stream."""
        return self.splits.get(split, {}).get(source, [])

    def source_tokens(self, split: str) -> dict[str, int]:
        """Tokens of each source in a split."""
        sources = self.splits.get(split, {})
        return {name: sum(entry["tokens"] for entry in shards) for name, shards in sources.items()}

    def missing_files(self) -> list[str]:
        """Names of the shards' files, and of the tokenizer, that are not there."""
        names = [str(self.tokenizer["file"])]
        for sources in self.splits.values():
            for entry in (entry for shards in sources.values() for entry in shards):
                names += [f"{entry['file']}.bin", f"{entry['file']}.idx"]
        return [name for name in names if not (self.folder / name).is_file()]

    def token_bytes(self) -> NDArray[np.uint16]:
        """UTF-8 bytes that each id stands for, (vocab_size,); 0 for special tokens."""
        path = self.folder / "token_bytes.npy"
        if not path.is_file():
            raise InputError(f"{path} is missing: tokenize the corpus again.")
        return np.load(path, allow_pickle=False)

    def check_tokenizer(self) -> None:
        """Raises InputError where tokenizer.json is not the one that the shards were made with."""
        if not self.tokenizer_path.is_file():
            raise InputError(f"{self.tokenizer_path} is missing: tokenize the corpus again.")
        found = tokenizer_fingerprint(self.tokenizer_path)
        if found != self.tokenizer["sha256"]:
            raise InputError(
                f"{self.tokenizer_path} has the fingerprint {found[:16]}, but the shards of "
                f"{self.folder / FILE} were made with {str(self.tokenizer['sha256'])[:16]}: "
                "restore that tokenizer, or tokenize the corpus again."
            )


def load_manifest(folder: str | Path) -> Manifest:
    """The manifest of a corpus folder, local or remote; raises InputError where there is none or it
    is not ours."""
    if is_remote(folder):
        from data_pipeline.store.remote import local_copy

        folder = local_copy(str(folder))
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: make it with python -m data_pipeline tokenize corpus=... "
            f"out={folder}."
        )
    try:
        fields = json.loads(path.read_text())
        found = fields.pop("format")
        if found != FORMAT:
            raise InputError(f"{path} has format {found}, expected {FORMAT}: tokenize again.")
        return Manifest(folder=Path(folder), **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a manifest of this project ({error}): tokenize the corpus again."
        ) from None


def tokenizer_fingerprint(path: Path) -> str:
    """sha256 of a tokenizer.json in canonical JSON: white space and key order do not matter."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): expected a tokenizer.json.") from None
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
