"""Words and numbers for the page that `inspect` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 source` or `2 sources`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], max_names: int = 8) -> str:
    """Joins the first `max_names` names with commas, followed by the number of the others."""
    names = list(names)
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def percent(part: int, whole: int) -> str:
    """Formats a fraction so that a nonzero value never rounds to 0%."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f}%" if share >= 1 or not part else f"{share:.2g}%"


def text_size(size: float) -> str:
    """Formats a number of bytes, such as `1.50 GB` or `300 kB`."""
    units: list[tuple[float, str, Callable[[float], str]]] = [
        (1e12, "TB", lambda v: f"{v:.2f}"),
        (1e9, "GB", lambda v: f"{v:.2f}"),
        (1e6, "MB", lambda v: f"{v:.1f}"),
        (1e3, "kB", lambda v: f"{v:.0f}"),
    ]
    for unit, name, form in units:
        if size >= unit:
            return f"{form(size / unit)} {name}"
    return f"{size:.0f} B"
