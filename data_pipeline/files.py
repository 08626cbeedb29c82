"""Files that are there whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def write_json(path: Path, content: Any) -> None:
    """Writes JSON."""
    data = json.dumps(content, ensure_ascii=True).encode()
    write_atomically(path, lambda file: file.write(data))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a .npy file."""
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The file appears, durable, when `write` has returned; after an error there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
