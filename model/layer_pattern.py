"""Patterns of letters that define how layers differ, repeated until they cover all layers.

In a window pattern, `L` stands for a layer with the sliding window (local), `G` for one with full
attention (global): `LLLG` over 6 layers is L L L G L L. In a RoPE pattern, `R` stands for a layer
with rotary positions, `N` for one without positions.
"""

from __future__ import annotations

from itertools import cycle, islice

from conf.errors import InputError


def check_window_pattern(pattern: str | None, num_layers: int, sliding_window: int | None) -> None:
    """Raises InputError if a pattern is invalid or does not fit the layers or the window."""
    if pattern is None:
        return
    key = f"model.window_pattern={pattern}"
    letters = {"L": "sliding window", "G": "full attention"}
    _check_letters(key, pattern, letters, "LLLG", num_layers)
    if sliding_window is None:
        raise InputError(
            f"{key}: requires model.sliding_window, which is null. Set model.sliding_window, or "
            "remove model.window_pattern."
        )
    if "L" not in pattern:
        raise InputError(
            f"{key}: no layer has a sliding window. Add an L, or set model.sliding_window=null and "
            "remove model.window_pattern."
        )


def layer_windows(
    pattern: str | None, num_layers: int, sliding_window: int | None
) -> list[int | None]:
    """Returns the window of each layer, None for full attention."""
    letters = islice(cycle(pattern or "L"), num_layers)
    return [sliding_window if letter == "L" else None for letter in letters]


def shortest_pattern(windows: list[int | None]) -> str | None:
    """Returns the shortest pattern that produces these windows, or None if all are equal."""
    if len(set(windows)) <= 1:
        return None
    return shortest("".join("G" if window is None else "L" for window in windows))


def check_rope_pattern(pattern: str | None, num_layers: int) -> None:
    """Raises InputError if a RoPE pattern is invalid or longer than the layers."""
    if pattern is not None:
        letters = {"R": "rotary positions", "N": "no positions"}
        _check_letters(f"model.rope_pattern={pattern}", pattern, letters, "RRRN", num_layers)


def _check_letters(
    key: str, pattern: str, letters: dict[str, str], example: str, num_layers: int
) -> None:
    """Raises InputError if a pattern has other letters, which have names, or more than layers."""
    if not pattern or set(pattern) - set(letters):
        named = " and ".join(f"{letter} ({name})" for letter, name in letters.items())
        raise InputError(f"{key}: expected letters {named}, such as {example}.")
    if len(pattern) > num_layers:
        raise InputError(
            f"{key}: expected at most model.num_layers={num_layers} letters, found {len(pattern)}."
        )


def layer_positions(pattern: str | None, num_layers: int) -> list[bool]:
    """Returns whether each layer has rotary positions."""
    return [letter == "R" for letter in islice(cycle(pattern or "R"), num_layers)]


def rope_pattern(positions: list[bool]) -> str | None:
    """Returns the shortest RoPE pattern of these layers, or None if all have positions."""
    if all(positions):
        return None
    return shortest("".join("R" if rotary else "N" for rotary in positions))


def shortest(word: str) -> str:
    """Returns the shortest word that, repeated and cut to the length of `word`, equals it."""
    for length in range(1, len(word) + 1):
        if word == (word[:length] * len(word))[: len(word)]:
            return word[:length]
    return word
