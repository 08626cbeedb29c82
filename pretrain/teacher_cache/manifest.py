"""The manifest of a cache of a teacher's answers, `manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.output_kinds import TEACHER_CACHE
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import TRAINING_KEYS, RecipeConfig, ScheduledStage
from data_pipeline.store.checksums import checksum_bytes
from data_pipeline.store.shards import DamagedShard
from pretrain.teacher_cache.records import ERROR_NATS, RecordForm
from pretrain.teacher_cache.units import Ranges

FILE = "manifest.json"
FORMAT = 1
REPAIR = "Restore the file, or run the same python -m pretrain teach again with overwrite=true."
OF_ORDER = (
    *("tokens", "mixture", "planned_tokens", "global_batch_tokens", "batch_ramp", "edition"),
    *("seq_len", "stages", "name", "atom_tokens", "inherited", "source_tokens"),
)
"""Keys of a recipe and its stages that affect contexts through the order of samples alone."""


@dataclass(frozen=True)
class CacheManifest:
    """Everything that is known about a cache.

    Attributes:
        teacher: The identity of the teacher (`objectives.distill.answers.Teacher`).
        tokenizer: Fingerprint of the tokenizer of the corpus.
        vocab_size: Number of ids of the teacher's vocabulary.
        precision: Precision of the teacher's matrix products.
        top_k: Number of ids per position.
        order: Content of `order.json` of the runs that the cache is for.
        data: Fingerprint of the edition of the corpus that each stage reads.
        contexts: For each stage, the settings of the recipe that change what a network sees of a
            sample, such as `documents`.
        stages: Names of the stages.
        steps: First and last step of the part that was taught, counted from 1.
        samples: Samples [first, end) per stage that were taught.
        micro_batch_tokens: Tokens per forward pass of the teacher.
        unit_tokens: Tokens per file.
        files: Entries of the files: `file` (path without suffix), `stage`, `first` (its first
            sample), `samples`, `bytes` and `sha256` (of `.bin`).
    """

    teacher: dict[str, Any]
    tokenizer: str
    vocab_size: int
    precision: str
    top_k: int
    order: dict[str, Any]
    data: list[str]
    contexts: list[dict[str, Any]]
    stages: list[str]
    steps: list[int]
    samples: Ranges
    micro_batch_tokens: int
    unit_tokens: int
    files: list[dict[str, Any]]

    def to_json(self) -> str:
        """Returns the content of `manifest.json`."""
        stated = {"format": FORMAT, "kind": TEACHER_CACHE.noun, "error_nats": ERROR_NATS}
        stated |= {"bytes_per_token": self.bytes_per_token, "bytes": self.bytes}
        return json.dumps(stated | asdict(self), indent=1)

    @property
    def inputs(self) -> str:
        """Returns the sha256 of everything that determines the content of the files."""
        content = asdict(self)
        content["teacher"] = content["teacher"]["fingerprint"]
        del content["files"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def form(self, stage: int) -> RecordForm:
        """Returns the form of the records of a stage."""
        seq_len = self.order["stages"][stage]["seq_len"]
        return RecordForm(seq_len, self.top_k, self.vocab_size)

    def sample_order(self) -> SampleOrder:
        """Returns the order of samples that the cache is for."""
        return SampleOrder.from_json(json.dumps(self.order))

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that were taught."""
        stages = self.order["stages"]
        return sum(
            (end - first) * stage["seq_len"]
            for (first, end), stage in zip(self.samples, stages, strict=True)
        )

    @property
    def bytes(self) -> int:
        """Returns the bytes of all files, without checksums."""
        return sum(
            (end - first) * self.form(stage).record_bytes
            for stage, (first, end) in enumerate(self.samples)
        )

    @property
    def bytes_per_token(self) -> float:
        """Returns the bytes per token."""
        return self.bytes / self.tokens

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yields the path of each file in the cache, and its size in bytes."""
        for entry in self.files:
            yield f"{entry['file']}.bin", entry["bytes"]
            yield f"{entry['file']}.sums", checksum_bytes(entry["bytes"])


def contexts_of(recipe: RecipeConfig, stage: ScheduledStage) -> dict[str, Any]:
    """Returns the settings of a stage that change contexts and are not part of the order.

    These are all keys of the stage and of the recipe that are not excluded by name, so that a key
    that is added later is compared too.
    """
    found = {
        key: value
        for config in (recipe, stage.config)
        for key, value in asdict(config).items()
        if key not in (*OF_ORDER, *TRAINING_KEYS)
    }
    return dict(json.loads(json.dumps(found)))


def load_cache(folder: str | Path, key: str) -> CacheManifest:
    """Reads the manifest of a cache, and compares the sizes of all files with it.

    Args:
        folder: Folder of the cache.
        key: Setting that names the folder, for messages.

    Raises:
        InputError: There is no complete cache.
        DamagedShard: A file is missing or has the wrong size.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        partial = Path(f"{os.fspath(folder).rstrip('/')}.partial")
        begun = f"{partial} is unfinished work. " if partial.is_dir() else ""
        raise InputError(
            f"{key}={folder}: {path} does not exist. {begun}Run python -m pretrain teach "
            f"out={folder} ... until it ends."
        )
    try:
        stated = json.loads(path.read_text())
        found = stated.pop("format")
        names = {field.name for field in fields(CacheManifest)}
        manifest = CacheManifest(**{name: stated[name] for name in names})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{key}={folder}: {path} is not the manifest of a teacher's answers ({error}). {REPAIR}"
        ) from None
    if found != FORMAT:
        raise InputError(
            f"{key}={folder}: {path} has format {found}, but this version reads format {FORMAT}. "
            "Use the version that wrote it."
        )
    check_sizes(Path(folder), manifest)
    return manifest


def check_sizes(folder: Path, manifest: CacheManifest) -> None:
    """Raises DamagedShard if a file of a cache is missing or has the wrong size."""
    sizes: dict[str, int] = {}
    for number in range(len(manifest.stages)):
        inside = folder / f"stage_{number}"
        if inside.is_dir():
            sizes |= {f"{inside.name}/{one.name}": one.stat().st_size for one in os.scandir(inside)}
    for name, size in manifest.sizes():
        found = sizes.get(name)
        if found is None:
            raise DamagedShard(f"{folder / name} is missing. {REPAIR}")
        if found != size:
            raise DamagedShard(
                f"{folder / name} has {found} bytes instead of {size}. The file is truncated or "
                f"belongs to another cache. {REPAIR}"
            )
