"""Reads the tensors of a file of `torch.save` without executing anything that is pickled in it.

`torch.load(weights_only=True)` refuses a file that also holds other objects, such as the data
loader that a trainer saved with its weights. Here those objects are replaced by inert ones.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
"""The only functions and classes of a file that are called; torch itself finds the storages."""


class Inert:
    """Stands for an object of a class that is not allowed. It takes any state and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Returns another object that does nothing."""
        return Inert()

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignores an element."""

    def extend(self, _: Any) -> None:
        """Ignores elements."""


class TensorUnpickler(pickle.Unpickler):
    """Finds the names of ALLOWED, and `Inert` for every other one."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the function or class of a name."""
        return ALLOWED.get((module, name), Inert)


def load_tensors(path: Path) -> dict[str, Any]:
    """Returns the content of a file that holds a dictionary, on the CPU and mapped from disk.

    Raises:
        ValueError: The file is not one of `torch.save`, or holds no dictionary.
    """
    reader: Any = SimpleNamespace(Unpickler=TensorUnpickler, __name__="tensors_only")
    try:
        found = torch.load(
            path, map_location="cpu", mmap=True, weights_only=False, pickle_module=reader
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(found, dict):
        raise ValueError("not a dictionary of tensors")
    return found
