"""A stage of the order of samples, and the checks that the stages of a run fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.fim import FimConfig


@dataclass(frozen=True)
class Stage:
    """A part of a training run with one sequence length and one mixture of sources.

    Attributes:
        seq_len: Sequence length in tokens.
        samples: Number of samples of that length.
        weights: Weight per source; the weights need not sum to 1.
        planned_samples: Original number of samples of a stage that is ended early; else None.
        source_tokens: Tokens per source in the corpus that the stage reads, if it has grown since
            the run was started; else None.
        fim: Options of fill in the middle, for the sources that have it.
    """

    seq_len: int
    samples: int
    weights: dict[str, float]
    planned_samples: int | None = None
    source_tokens: dict[str, int] | None = None
    fim: dict[str, FimConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.planned_samples is not None and self.planned_samples < self.samples:
            raise InputError(
                f"planned_samples={self.planned_samples}: expected samples={self.samples} or more. "
                "Set planned_samples only for a stage that is ended early."
            )

    @property
    def tokens(self) -> int:
        """Number of tokens in the stage, in whole steps."""
        return self.samples * self.seq_len

    def to_json(self) -> dict[str, Any]:
        """Returns the stage in the form that `order.json` stores."""
        planned = {} if self.planned_samples is None else {"planned": self.planned_samples}
        grown = {} if self.source_tokens is None else {"source_tokens": self.source_tokens}
        fim = {"fim": {name: one.to_json() for name, one in self.fim.items()}} if self.fim else {}
        return {
            "seq_len": self.seq_len,
            "samples": self.samples,
            "weights": self.weights,
            **planned,
            **grown,
            **fim,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Stage:
        """Returns the stage that the result of `to_json` describes."""
        return cls(
            fields["seq_len"],
            fields["samples"],
            fields["weights"],
            fields.get("planned"),
            fields.get("source_tokens"),
            {name: FimConfig(**one) for name, one in fields.get("fim", {}).items()},
        )


def check_atom(stages: Sequence[Stage], atom: int) -> None:
    """Raises InputError if the sequence length of a stage does not divide the atom."""
    for number, stage in enumerate(stages):
        if atom % stage.seq_len:
            raise InputError(
                f"recipe.stages: the sequences of stage {number} (counted from 0) have "
                f"{stage.seq_len} tokens, which does not divide {atom}, the atom of the order. "
                "Change seq_len, or set recipe.atom_tokens to a multiple of every seq_len."
            )


def check_growth(stages: Sequence[Stage], source_tokens: Mapping[str, int]) -> None:
    """Raises InputError if a stage has fewer tokens of a source than an earlier stage.

    A branch in another corpus may lack a source, which it does not read.
    """
    before = dict(source_tokens)
    for number, stage in enumerate(stages):
        now = stage.source_tokens or source_tokens
        for source, tokens in now.items():
            if tokens < before.get(source, 0):
                raise InputError(
                    f"recipe.stages: stage {number} (counted from 0) reads {tokens} tokens of "
                    f"source '{source}', fewer than the {before[source]} that were there before. "
                    "Let it read the same edition of the corpus or a later one."
                )
        before |= now
