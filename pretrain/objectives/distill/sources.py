"""Sources of teachers: a Hugging Face folder, or a step of a run.

A source is opened without reading weights, so that a run can be checked and planned before it
starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer
from torch import Tensor

from conf.errors import InputError
from data_pipeline.store.manifest import FILE, Manifest, load_manifest
from model.config import ModelConfig
from model.families import family_named
from model.families.folder import HFWeights, read_config
from pretrain.checkpoints import files, find, read

SAMPLED_BYTES = 1 << 20
"""Bytes of each sampled part of a weight file that a fingerprint covers."""
SAMPLES = 16
"""Number of parts of a weight file that a fingerprint covers, from its first to its last bytes."""


class NetworkSource(Protocol):
    """A network on disk.

    Attributes:
        path: What the config names.
        network: The shape of the network.
        tokenizer: Its tokenizer.json.
    """

    path: str
    network: ModelConfig
    tokenizer: Path

    def identity(self) -> Mapping[str, Any]:
        """Returns the path, the fingerprint and, of a run, the step, as JSON values."""
        ...

    def read(self, name: str) -> Tensor:
        """Returns the whole tensor of a parameter."""
        ...


class FolderSource:
    """A Hugging Face folder of one of `model.families`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = Path(path)
        self.network = read_config(self._folder)
        self.tokenizer = self._folder / "tokenizer.json"

    @cached_property
    def _weights(self) -> HFWeights:
        return HFWeights(self._folder, family_named(self.network.architecture))

    def identity(self) -> Mapping[str, Any]:
        """Returns the path, and a fingerprint of the config and of parts of the weights."""
        sum_ = hashlib.sha256((self._folder / "config.json").read_bytes())
        for file in sorted(self._folder.glob("*.safetensors")):
            size = file.stat().st_size
            sum_.update(f"{file.name} {size}".encode())
            with file.open("rb") as content:
                for sample in range(SAMPLES):
                    content.seek(max(0, size - SAMPLED_BYTES) * sample // (SAMPLES - 1))
                    sum_.update(content.read(SAMPLED_BYTES))
        return {"path": self.path, "model": self.network.name, "fingerprint": sum_.hexdigest()}

    def read(self, name: str) -> Tensor:
        """Returns the whole tensor of a parameter."""
        return self._weights.read(name)


class RunSource:
    """A step of a run, written as RUN or RUN@STEP; the newest step without one."""

    def __init__(self, path: str, run_dir: Path, step: str) -> None:
        self.path = path
        self._checkpoint, metadata = find.checkpoint_of_step(run_dir / "checkpoints", step)
        if "network" not in metadata:
            raise InputError(
                f"{self._checkpoint} is of an earlier version, which does not state its network. "
                "Export the run, and give the exported folder."
            )
        known = {field.name for field in fields(ModelConfig)}
        network = {key: value for key, value in metadata["network"].items() if key in known}
        self.network = ModelConfig(**network)
        copy = run_dir / "corpus"
        if not (copy / FILE).is_file():
            raise InputError(
                f"{run_dir} has no copy of its tokenizer. Export the run, and give the exported "
                "folder."
            )
        self.tokenizer = load_manifest(copy).tokenizer_path
        self.step = int(metadata["step"])
        self._reader = read.SafeReader(self._checkpoint)

    def identity(self) -> Mapping[str, Any]:
        """Returns the path, the step, and a fingerprint of the checkpoint's files."""
        manifest = (self._checkpoint / files.MANIFEST).read_bytes()
        fingerprint = hashlib.sha256(manifest).hexdigest()
        return {
            "path": self.path,
            "model": self.network.name,
            "step": self.step,
            "fingerprint": fingerprint,
        }

    def read(self, name: str) -> Tensor:
        """Returns the whole tensor of a parameter."""
        return read.weight(self._reader, name)


def open_network(path: str) -> NetworkSource:
    """Returns the network of a folder, a run or RUN@STEP. Raises InputError if it is neither."""
    folder = Path(path)
    if (folder / "config.json").is_file():
        return FolderSource(path)
    run, at, step = path.rpartition("@")
    run_dir = Path(run) if at else folder
    if (run_dir / "checkpoints").is_dir():
        return RunSource(path, run_dir, step if at else "latest")
    raise InputError(
        f"{path} is neither a Hugging Face folder nor a run with checkpoints. Give one of them, or "
        "RUN@STEP for a step of a run."
    )


def check_tokenizer(tokenizer: Path, manifest: Manifest) -> None:
    """Raises InputError if an id of the corpus stands for another token in a tokenizer.

    The tokenizer may have more tokens than the corpus, such as those of a chat template.
    """
    if not tokenizer.is_file():
        raise InputError(
            f"{tokenizer} does not exist, so the tokenizers cannot be compared. Copy it into the "
            "folder of the teacher."
        )
    theirs, ours = (
        {number: token for token, number in Tokenizer.from_file(str(path)).get_vocab().items()}
        for path in (tokenizer, manifest.tokenizer_path)
    )
    differ = sorted(number for number, token in ours.items() if theirs.get(number) != token)
    if differ:
        first = differ[0]
        theirs_ = repr(theirs[first]) if first in theirs else "no token"
        raise InputError(
            f"{tokenizer} is not the tokenizer of {manifest.name}: {len(differ):,} of "
            f"{len(ours):,} ids differ. Id {first} is {theirs_} of the teacher and "
            f"{ours[first]!r} of the corpus. Give a teacher with the tokenizer of the corpus, or "
            "change the teacher's with python -m model remap_vocab and train it further."
        )
