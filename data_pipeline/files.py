"""Atomic writing of JSON files and arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.files import write_atomically


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    data = json.dumps(content, ensure_ascii=True).encode()
    write_atomically(path, lambda file: file.write(data))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a .npy file atomically."""
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
