"""The order of samples: sample i of a stage is a pure function of (sources, stages, seed, i).

An atom is a run of as many tokens as the plan's longest sequence. The atoms of a source are served
in the order of a keyed permutation, another one each epoch, so that nothing comes twice before all
has come once (I3), however often sequence length and mixture change. The mixture says which source
serves the t-th atom; a window of atoms is cut into pieces of the stage's length, and the pieces are
permuted too. Nothing is stored: memory and start-up do not depend on the number of tokens, and no
rank, layout, batch size or restart has a say (I1).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.feistel import derive_key, mix, permute
from data_pipeline.mixture import Mixture

Ints = NDArray[np.int64]
WINDOW_ATOMS = 256
FORMAT = 1


@dataclass(frozen=True)
class OrderStage:
    """seq_len in tokens; samples of that length; weights of the sources by name, not normalised."""

    seq_len: int
    samples: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Located:
    """Where samples lie, arrays (n,): `source` indexes `SampleOrder.sources`, `start` is the token
    offset in the source's stream, `epoch` counts from 0."""

    source: Ints
    epoch: Ints
    start: Ints


class SampleOrder:
    """The order of a plan.

    source_tokens: tokens of each source's stream.
    max_epochs: how often a source may be read, for all or by name; None for no limit.
    atom: tokens of an atom, a multiple of every stage's seq_len; by default the longest. Give it
        where a later, longer stage may be added: the past then stays as it is.

    Raises InputError where a stage does not fit the atom, or the plan needs more of a source than
    there is.
    """

    def __init__(
        self,
        source_tokens: Mapping[str, int],
        stages: Sequence[OrderStage],
        seed: int,
        max_epochs: float | Mapping[str, float] | None = None,
        atom: int | None = None,
    ) -> None:
        self.source_tokens = dict(source_tokens)
        self.sources = tuple(source_tokens)
        self.stages = tuple(stages)
        self.seed = seed
        self.atom = atom or max(stage.seq_len for stage in stages)
        for number, stage in enumerate(stages):
            if self.atom % stage.seq_len:
                raise InputError(
                    f"stage {number} has sequences of {stage.seq_len} tokens, which do not divide "
                    f"the atom of {self.atom} (the longest sequence of the plan)."
                )
        # The last token of a sample is only a label, so an atom needs one token after it.
        tokens = np.array(list(source_tokens.values()), np.int64)
        self._atoms = np.maximum(0, (tokens - 1) // self.atom)
        self._mixtures = [
            Mixture([stage.weights.get(source, 0.0) for source in self.sources]) for stage in stages
        ]
        self._stage_atoms = [math.ceil(s.samples * s.seq_len / self.atom) for s in stages]
        used = np.zeros(len(self.sources), np.int64)
        self._first_atom = []
        for mixture, atoms in zip(self._mixtures, self._stage_atoms, strict=True):
            self._first_atom.append(used)
            used = used + mixture.counts(np.array(atoms))
        self._check_epochs(used, max_epochs)
        self._source_keys = np.array(
            [derive_key(seed, "source", source) for source in self.sources], np.uint64
        )

    def locate(self, stage: int, samples: Ints) -> Located:
        """Where the samples with these numbers, counted from the stage's start, lie.

        Raises IndexError for a number outside of the stage.
        """
        samples = np.asarray(samples, np.int64)
        count = self.stages[stage].samples
        if samples.size and not 0 <= samples.min() <= samples.max() < count:
            raise IndexError(
                f"stage {stage} has samples 0 to {count - 1}, asked for {samples.min()} to "
                f"{samples.max()}"
            )
        seq_len, atoms = self.stages[stage].seq_len, self._stage_atoms[stage]
        pieces = self.atom // seq_len
        window, inside = np.divmod(samples, WINDOW_ATOMS * pieces)
        size = np.minimum(WINDOW_ATOMS, atoms - window * WINDOW_ATOMS) * pieces
        window_key = np.uint64(derive_key(self.seed, "window", stage))
        shuffled = permute(inside, size, mix(window_key + window.astype(np.uint64)))
        in_window, piece = np.divmod(shuffled, pieces)
        source, number = self._mixtures[stage].locate(window * WINDOW_ATOMS + in_window)
        number = number + self._first_atom[stage][source]
        epoch, number = np.divmod(number, self._atoms[source])
        key = mix(self._source_keys[source] + epoch.astype(np.uint64))
        atom = permute(number, self._atoms[source], key)
        return Located(source, epoch, atom * self.atom + piece * seq_len)

    def consumed(self, stage: int, samples: int) -> dict[str, int]:
        """Tokens of each source served by all earlier stages and the first `samples` samples of
        this one. Whole windows are counted in closed form, the window under way piece by piece."""
        total = self._before_stage[stage] + self._served(stage, samples)
        return dict(zip(self.sources, total.tolist(), strict=True))

    @cached_property
    def _before_stage(self) -> list[Ints]:
        before = [np.zeros(len(self.sources), np.int64)]
        for number, stage in enumerate(self.stages):
            before.append(before[-1] + self._served(number, stage.samples))
        return before

    def _served(self, stage: int, samples: int) -> Ints:
        seq_len = self.stages[stage].seq_len
        per_window = WINDOW_ATOMS * (self.atom // seq_len)
        windows, rest = divmod(samples, per_window)
        whole = self._mixtures[stage].counts(np.array(windows * WINDOW_ATOMS)) * self.atom
        under_way = self.locate(stage, windows * per_window + np.arange(rest)).source
        return whole + np.bincount(under_way, minlength=len(self.sources)) * seq_len

    def epochs(self) -> dict[str, float]:
        """How often the whole plan reads each source."""
        last = self._first_atom[-1] + self._mixtures[-1].counts(np.array(self._stage_atoms[-1]))
        return {
            source: float(used / atoms) if atoms else 0.0
            for source, used, atoms in zip(self.sources, last, self._atoms, strict=True)
        }

    def _check_epochs(self, used: Ints, limit: float | Mapping[str, float] | None) -> None:
        for source, atoms_used, atoms in zip(self.sources, used, self._atoms, strict=True):
            if not atoms_used:
                continue
            tokens = self.source_tokens[source]
            if not atoms:
                raise InputError(
                    f"source '{source}' has {tokens} tokens, fewer than one atom of {self.atom} "
                    "and the label after it: give it more text or no weight."
                )
            most = limit.get(source) if isinstance(limit, Mapping) else limit
            if most is not None and atoms_used > most * atoms:
                raise InputError(
                    f"the recipe reads source '{source}' {atoms_used / atoms:.2f} times "
                    f"({tokens:,} tokens there), more than data.max_epochs={most:g}: give it more "
                    "text, less weight, fewer tokens, or raise data.max_epochs."
                )

    def to_json(self) -> str:
        """Everything that decides the order."""
        return json.dumps(
            {
                "format": FORMAT,
                "seed": self.seed,
                "atom": self.atom,
                "window_atoms": WINDOW_ATOMS,
                "source_tokens": self.source_tokens,
                "stages": [asdict(stage) for stage in self.stages],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> SampleOrder:
        """The order that `to_json` described."""
        fields = json.loads(text)
        if (fields["format"], fields["window_atoms"]) != (FORMAT, WINDOW_ATOMS):
            raise InputError(
                f"the order of samples was written in format {fields['format']} with windows of "
                f"{fields['window_atoms']} atoms, expected {FORMAT} and {WINDOW_ATOMS}: use the "
                "version that made it."
            )
        stages = [OrderStage(**stage) for stage in fields["stages"]]
        return cls(fields["source_tokens"], stages, fields["seed"], atom=fields["atom"])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
