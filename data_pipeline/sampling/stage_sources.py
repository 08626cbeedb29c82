"""Decides which edition of the corpus each stage reads, and the weights of its sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conf.errors import InputError, did_you_mean

LATEST = "latest"
"""Value of the key `edition` of a stage: the newest edition when the stage was planned."""
SourceTokens = Mapping[str, int] | Sequence[Mapping[str, int]]
"""Training tokens per source of a corpus or, as a sequence, of each of its editions."""


def stage_editions(
    asked: Mapping[str, Any], source_tokens: SourceTokens
) -> dict[str, tuple[int, Mapping[str, int]]]:
    """Returns the number of the edition that each stage reads, and its tokens per source.

    Args:
        asked: The key `edition` of each stage, by its name.
        source_tokens: Training tokens per source, or those of each edition.

    Raises:
        InputError: An edition does not exist, or is earlier than that of the stage before.
    """
    if isinstance(source_tokens, Mapping):
        return dict.fromkeys(asked, (1, source_tokens))
    newest, before = len(source_tokens), 0
    found = {}
    for name, given in asked.items():
        key = f"recipe.stages.{name}.edition={given}"
        edition = newest if given == LATEST else given or before or newest
        if edition > newest:
            raise InputError(
                f"{key}: the newest edition of the corpus is {newest}. Give a number up to "
                f"{newest}, or latest."
            )
        if edition < before:
            raise InputError(
                f"{key}: the stage before reads edition {before}, and editions only grow. Give "
                f"{before} or a later edition."
            )
        found[name] = edition, source_tokens[edition - 1]
        before = edition
    return found


def stage_weights(
    key: str, mixture: Mapping[str, float], source_tokens: Mapping[str, int], editions: SourceTokens
) -> dict[str, float]:
    """Returns the weight per source, which is its number of tokens if the mixture is empty.

    Args:
        key: The key of the stage, for messages.
        mixture: Weight per source in the config.
        source_tokens: Training tokens per source in the edition that the stage reads.
        editions: Training tokens per source of all editions.

    Raises:
        InputError: The mixture names an unknown source, or has no weight above 0.
    """
    later = () if isinstance(editions, Mapping) else editions
    for source, weight in mixture.items():
        if source not in source_tokens:
            added = next((n for n, tokens in enumerate(later, 1) if source in tokens), None)
            if added is not None:
                raise InputError(
                    f"{key}.mixture.{source}={weight}: this source was added to the corpus with "
                    f"edition {added}, which the stage does not read. Set {key}.edition={added}, "
                    "or remove the source."
                )
            raise InputError(
                f"{key}.mixture.{source}={weight}: the corpus has no source '{source}'"
                f"{did_you_mean(source, source_tokens)}."
            )
        if weight < 0:
            raise InputError(f"{key}.mixture.{source}={weight}: expected 0 or more.")
    weights = dict(mixture) or {s: float(t) for s, t in source_tokens.items()}
    if sum(weights.values()) <= 0:
        raise InputError(
            f"{key}.mixture: all weights are 0. Give at least one source a weight above 0."
        )
    return weights
