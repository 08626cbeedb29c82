"""Formatting shared by all folders: durations, sizes, dotted keys and tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30
LOG_WIDTH = 168
"""Width of tables, in characters, if stdout is not a terminal."""


def format_duration(seconds: float) -> str:
    """Formats a duration: `0.4 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.2g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_bytes(count: float) -> str:
    """Formats a number of bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dictionaries, keyed by dotted names."""
    if not isinstance(content, dict):
        return {prefix: content}
    parts: dict[str, Any] = {}
    for key, value in content.items():
        parts |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return parts


def table_console() -> Console:
    """Returns a console for tables, as wide as the terminal, or LOG_WIDTH wide if there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)
