"""Fill in the middle (FIM, arXiv 2207.14255): the options of a source, and the special tokens.

A document is cut into prefix, middle and suffix, and the middle is moved to the end, so that a
model learns to fill the gap. `fim_transform` does it when a sample is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from conf.errors import InputError, did_you_mean, one_of
from data_pipeline.store.manifest import Manifest

FORMATS = ("mixed", "psm", "spm")
"""Values of the key `format`; the first is the default."""
ROLES = ("prefix", "suffix", "middle")
KNOWN_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
"""Names of the special tokens in published tokenizers, in the order of ROLES."""
LISTED_TOKENS = 30
"""Number of special tokens up to which a message lists all of them."""


@dataclass
class FimConfig:
    """Configuration of fill in the middle (FIM) for one source of a stage.

    share: Fraction of the documents that are rearranged.
    format: psm for prefix, suffix, middle; spm for suffix, prefix, middle; mixed for both, each in
        half of the documents.
    prefix: Special token before the prefix. null for this and the next two takes the known names
        that the tokenizer of the corpus has, such as <|fim_prefix|>.
    suffix: Special token before the suffix.
    middle: Special token before the middle.
    end: Special token after the middle; null for none. EOS still ends the document.
    """

    share: float = 0.5
    format: str = FORMATS[0]
    prefix: str | None = None
    suffix: str | None = None
    middle: str | None = None
    end: str | None = None

    def check(self, key: str) -> None:
        """Raises InputError if a value is invalid. key: the key of these options."""
        if not 0 <= self.share <= 1:
            raise InputError(f"{key}.share={self.share:g}: expected a fraction from 0 to 1.")
        one_of(f"{key}.format", self.format, FORMATS)
        given = [role for role in ROLES if getattr(self, role) is not None]
        if given and len(given) < len(ROLES):
            missing = next(role for role in ROLES if role not in given)
            raise InputError(
                f"{key}.{missing}=null: {key}.{given[0]} is set. Set all of prefix, suffix and "
                "middle, or none of them."
            )
        names = [name for name in (*(getattr(self, role) for role in ROLES), self.end) if name]
        if len(set(names)) < len(names):
            raise InputError(f"{key}: a token has two roles. Use a token of its own for each role.")

    def describe(self) -> str:
        """Returns the share and the format in words, such as `50% mixed`."""
        return f"{100 * self.share:.4g}% {self.format}"

    def to_json(self) -> dict[str, Any]:
        """Returns the options in the form that `order.json` stores."""
        return asdict(self)


@dataclass(frozen=True)
class FimTokens:
    """Ids of the special tokens of a source in the tokenizer of the corpus; `end` may be None."""

    prefix: int
    suffix: int
    middle: int
    end: int | None = None


def check_sources(key: str, fim: Mapping[str, FimConfig], weights: Mapping[str, float]) -> None:
    """Raises InputError if FIM is set for a source that the mixture of the stage does not have.

    Args:
        key: The key of the stage, such as `recipe.stages.short`.
        fim: Options per source.
        weights: Weight per source of the stage.
    """
    for source in fim:
        if source not in weights:
            raise InputError(
                f"{key}.fim.{source}: the mixture of the stage has no source '{source}'"
                f"{did_you_mean(source, weights)}. Name a source of the mixture, or remove the key."
            )


def active(fim: Mapping[str, FimConfig]) -> dict[str, FimConfig]:
    """Returns the options of the sources of which some documents are rearranged."""
    return {source: options for source, options in fim.items() if options.share > 0}


def added_tokens(manifest: Manifest) -> dict[str, int]:
    """Returns the ids of the tokens that were added to the vocabulary of a corpus's tokenizer."""
    content = json.loads(manifest.tokenizer_path.read_text())
    return {token["content"]: int(token["id"]) for token in content.get("added_tokens") or []}


def fim_tokens(key: str, fim: FimConfig, manifest: Manifest, added: Mapping[str, int]) -> FimTokens:
    """Returns the ids of the special tokens of a source.

    Args:
        key: The key of the options, for messages.
        fim: The options.
        manifest: Manifest of the corpus.
        added: Ids of the added tokens of its tokenizer (`added_tokens`).

    Raises:
        InputError: The tokenizer lacks one of the tokens, or it has another role already.
    """
    roles = token_names(fim, added)
    if not roles:
        raise InputError(
            f"{key}: the tokenizer of the corpus has no special tokens with a known name, such as "
            f"{', '.join(KNOWN_TOKENS[0])}. Set prefix, suffix and middle to special tokens that "
            "it has, or tokenize the corpus with tokenizer.extra_tokens."
        )
    for role, name in roles.items():
        if name not in added:
            similar = did_you_mean(name, added) if len(added) <= LISTED_TOKENS else ""
            raise InputError(
                f"{key}.{role}={name}: the tokenizer of the corpus has no special token of this "
                f"name{similar}. Choose one that it has, or tokenize the corpus with "
                "tokenizer.extra_tokens."
            )
        ids = {of: manifest.tokenizer.get(f"{of}_id") for of in ("pad", "bos", "eos")}
        taken = [of for of, number in ids.items() if number == added[name]]
        if taken and role != "end":
            raise InputError(
                f"{key}.{role}={name}: this is the {taken[0].upper()} of the corpus. Choose a "
                "token without another role."
            )
    return FimTokens(**{role: added[name] for role, name in roles.items()})


def token_names(fim: FimConfig, added: Mapping[str, int]) -> dict[str, str]:
    """Returns the names of the special tokens by role; empty if the tokenizer has no known ones."""
    given = fim.prefix, fim.suffix, fim.middle
    known = (
        [] if None not in given else [names for names in KNOWN_TOKENS if set(names) <= set(added)]
    )
    names = known[0] if known else given
    found = dict(zip((*ROLES, "end"), (*names, fim.end), strict=True))
    return {} if names[0] is None else {role: name for role, name in found.items() if name}


def describe_fim(stages: Mapping[str, Mapping[str, FimConfig]], manifest: Manifest) -> str:
    """Returns what stages rearrange and with which tokens in words, empty if they do not.

    stages: options per source of each stage, by the name of the stage.
    """
    found: dict[str, list[str]] = {}
    added = added_tokens(manifest) if any(stages.values()) else {}
    for name, fim in stages.items():
        for source, options in fim.items():
            tokens = ", ".join(token_names(options, added).values())
            words = f"{options.describe()} of the documents of {source} with {tokens}"
            found.setdefault(words, []).append(name)
    return "; ".join(f"{words} in stage {', '.join(names)}" for words, names in found.items())


def check_fim(stages: Mapping[str, Mapping[str, FimConfig]], manifest: Manifest) -> None:
    """Raises InputError if the tokenizer of the corpus lacks special tokens that a stage needs.

    stages: options per source of each stage, by the name of the stage.
    """
    named = [(name, *item) for name, fim in stages.items() for item in fim.items()]
    added = added_tokens(manifest) if named else {}
    for name, source, fim in named:
        fim_tokens(f"recipe.stages.{name}.fim.{source}", fim, manifest, added)
