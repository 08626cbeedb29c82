"""Reads the forecast of a run's loss, which its report compares with the loss that was reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import InputError

FILE = "forecast.json"
KEYS = ("hidden_size", "num_layers", "tokens", "level", "loss", "sources")


def read_forecast(given: str) -> dict[str, Any]:
    """Returns the content of a forecast.

    Args:
        given: The file, or the folder of the study that wrote it.

    Raises:
        InputError: There is no such file, or it is not a forecast.
    """
    path = Path(given) / FILE if Path(given).is_dir() else Path(given)
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise InputError(
            f"forecast={given}: {path} cannot be read. Give the folder of a finished study of the "
            "kind ladder."
        ) from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or any(key not in content for key in KEYS):
        raise InputError(
            f"forecast={given}: {path} is not a forecast. Give the {FILE} of a study of the kind "
            "ladder."
        )
    return content
