"""Loads a checkpoint into any layout without unpickling arbitrary objects (I11).

DCP's `.metadata` is a pickle, and DCP reads values that are not tensors with `weights_only=False`,
so a checkpoint from an untrusted source could execute arbitrary code. This module allows the
metadata to reference only the names in KNOWN, and reads other values with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict import set_state_dict
from torch.futures import Future

from pretrain.checkpoints.files import CheckpointError
from pretrain.checkpoints.staging import state_of

WEIGHTS = "model."
"""Prefix of the names of the weights in a checkpoint."""
KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns the object of a name that DCP's metadata may contain, and refuses all others."""
        is_type = module == "torch" and (
            name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)
        )
        if is_type or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it references {module}.{name}")


class SafeReader(FileSystemReader):
    """Reads DCP's files. Raises CheckpointError if a pickle references more than plain data."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the metadata, which is read only once."""
        if self._metadata is None:
            path = Path(self.path) / ".metadata"
            try:
                with path.open("rb") as file:
                    self._metadata = _Metadata(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError) as error:
                raise CheckpointError(
                    f"{path} is not valid checkpoint metadata ({error}), so it was not unpickled. "
                    "Remove the checkpoint, and find out where it came from."
                ) from None
            self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads the items of a plan, after checking the file names of non-tensor values."""
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                about = self.storage_data[item.storage_index]
                if "/" in about.relative_path or about.transform_descriptors:
                    raise CheckpointError(
                        f"{self.path} has no file {about.relative_path}, which its metadata names. "
                        "Remove the checkpoint, and find out where it came from."
                    )
        return super().read_data(plan, planner)


class SafePlanner(DefaultLoadPlanner):
    """A load planner that accepts tensors and plain values, but no other objects."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Loads a value that is not a tensor."""
        try:
            plain = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"the checkpoint's entry {read_item.dest_index.fqn} is not a plain value, so it "
                f"was not unpickled ({str(error).splitlines()[0]}). Remove the checkpoint, and "
                "find out where it came from."
            ) from None
        clean = io.BytesIO()
        torch.save(plain, clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Loads a checkpoint of any layout into a sharded model and its optimizer.

    The settings of parameter groups, such as learning rate and weight decay, are not loaded. They
    remain those of `optimizer`, which come from the config.
    """
    state = state_of(model, optimizer)
    groups = state["optimizer"].pop("param_groups")
    _load_into(state, SafeReader(path))
    state["optimizer"]["param_groups"] = groups
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


def load_tensors(path: Path, prefix: str, state: dict[str, Any]) -> bool:
    """Loads the tensors of a checkpoint into those of `state`, which may be sharded.

    Returns False, and loads nothing, if the checkpoint has no tensor whose name begins with
    `prefix`. All ranks must call this function.
    """
    reader = SafeReader(path)
    if not any(name.startswith(prefix) for name in reader.read_metadata().state_dict_metadata):
        return False
    _load_into(state, reader)
    return True


class Tensors:
    """The unsharded tensors of a checkpoint, read one at a time in a single process.

    shapes: shape by name, of the tensors whose names begin with `prefix`, which is removed.
    dtypes: dtype by name.
    """

    def __init__(self, path: Path, prefix: str = WEIGHTS) -> None:
        self._reader, self._prefix = SafeReader(path), prefix
        about = {
            name.removeprefix(prefix): tensor
            for name, tensor in self._reader.read_metadata().state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(tensor, TensorStorageMetadata)
        }
        self.shapes = {name: tensor.size for name, tensor in about.items()}
        self.dtypes = {name: tensor.properties.dtype for name, tensor in about.items()}

    def read(self, name: str) -> Tensor:
        """Returns the whole tensor of a name."""
        value = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        _load_into({f"{self._prefix}{name}": value}, self._reader, no_dist=True)
        return value

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yields all names and tensors."""
        return ((name, self.read(name)) for name in self.shapes)


def weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the unsharded parameters of a checkpoint with their names, in a single process."""
    return iter(Tensors(path))


def weight(reader: SafeReader, name: str) -> Tensor:
    """Returns an unsharded parameter of a checkpoint, without communication."""
    about = reader.read_metadata().state_dict_metadata[f"model.{name}"]
    assert isinstance(about, TensorStorageMetadata)
    value = torch.empty(about.size, dtype=about.properties.dtype)
    _load_into({"model": {name: value}}, reader, no_dist=True)
    return value


def _load_into(state: dict[str, Any], reader: SafeReader, no_dist: bool = False) -> None:
    reader.read_metadata()  # raises CheckpointError itself, which DCP would wrap
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(state, storage_reader=reader, planner=SafePlanner(), no_dist=no_dist)
        except dcp.api.CheckpointException as error:
            for problem in error.failures.values():
                if isinstance(problem[0], CheckpointError):
                    raise problem[0] from None
            raise
