"""The order of samples: sample i of a stage is a pure function of (sources, stages, seed, i).

An atom is a run of as many tokens as the plan's longest sequence. The atoms of a source are served
in the order of a keyed permutation, another one each epoch, so that nothing comes twice before all
has come once (I3), however often sequence length and mixture change. The mixture says which source
serves the t-th atom; a window of atoms is cut into pieces of the stage's length, and the pieces are
permuted too. Nothing is stored: memory and start-up do not depend on the number of tokens, and no
rank, layout, batch size or restart has a say (I1). Every step of it can be undone, so that the
samples that held a token are known without a search.

A stage that is ended before its time, for another mixture or length, keeps the windows that it was
begun with (`planned`). What is left of its last window is served first by the next stage: nothing
is lost and nothing comes twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.sampling.feistel import UInts, derive_key, mix, permute, unpermute
from data_pipeline.sampling.mixture import Mixture

Ints = NDArray[np.int64]
WINDOW_ATOMS = 256
FORMAT = 1


@dataclass(frozen=True)
class OrderStage:
    """seq_len in tokens; samples of that length; weights of the sources by name, not normalised.

    planned: samples that the stage had when it was begun, where it was ended early; else None.
    """

    seq_len: int
    samples: int
    weights: dict[str, float]
    planned: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Located:
    """Where samples lie, arrays (n,): `source` indexes `SampleOrder.sources`, `start` is the token
    offset in the source's stream, `epoch` counts from 0."""

    source: Ints
    epoch: Ints
    start: Ints

    def __getitem__(self, part: Any) -> Located:
        return Located(self.source[part], self.epoch[part], self.start[part])


@dataclass(frozen=True)
class Served:
    """Samples that held tokens of a source, arrays (n,), in the order in which they are served."""

    stage: Ints
    sample: Ints
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
            if stage.planned is not None and stage.planned < stage.samples:
                raise InputError(
                    f"stage {number} was planned with {stage.planned} samples, fewer than the "
                    f"{stage.samples} that it has: only a stage that is ended early has a plan."
                )
        # The last token of a sample is only a label, so an atom needs one token after it.
        tokens = np.array(list(source_tokens.values()), np.int64)
        self._atoms = np.maximum(0, (tokens - 1) // self.atom)
        self._mixtures = [
            Mixture([stage.weights.get(source, 0.0) for source in self.sources]) for stage in stages
        ]
        self._source_keys = np.array(
            [derive_key(seed, "source", source) for source in self.sources], np.uint64
        )
        used = np.zeros(len(self.sources), np.int64)
        self._first_atom: list[Ints] = []
        self._carried: list[Located] = []
        self._stage_atoms: list[int] = []
        carried = Located(*np.zeros((3, 0), np.int64))
        for number, stage in enumerate(self.stages):
            self._first_atom.append(used)
            self._carried.append(carried)
            count = len(carried.source)
            planned = max(stage.samples, stage.planned or 0)
            self._stage_atoms.append(math.ceil(max(0, planned - count) * stage.seq_len / self.atom))
            used = used + self._mixtures[number].counts(np.array(self._atoms_used(number)))
            self._check_epochs(used, max_epochs)
            carried = self._left_over(number)

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
        carried = self._carried[stage]
        number = len(carried.source)
        if not number:
            return self._locate_own(stage, samples)
        own = self._locate_own(stage, np.maximum(0, samples - number))
        first = samples < number
        taken = carried[np.where(first, samples, 0)]
        return Located(
            np.where(first, taken.source, own.source),
            np.where(first, taken.epoch, own.epoch),
            np.where(first, taken.start, own.start),
        )

    def _locate_own(self, stage: int, samples: Ints) -> Located:
        """`locate` without what the stage before left, and without its end."""
        if not self._stage_atoms[stage]:
            return Located(*np.zeros((3, *samples.shape), np.int64))
        seq_len, atoms = self.stages[stage].seq_len, self._stage_atoms[stage]
        pieces = self.atom // seq_len
        window, inside = np.divmod(samples, WINDOW_ATOMS * pieces)
        size = np.minimum(WINDOW_ATOMS, atoms - window * WINDOW_ATOMS) * pieces
        shuffled = permute(inside, size, self._window_key(stage, window))
        in_window, piece = np.divmod(shuffled, pieces)
        source, number = self._mixtures[stage].locate(window * WINDOW_ATOMS + in_window)
        number = number + self._first_atom[stage][source]
        epoch, number = np.divmod(number, self._atoms[source])
        atom = permute(number, self._atoms[source], self._epoch_key(source, epoch))
        return Located(source, epoch, atom * self.atom + piece * seq_len)

    def find(self, source: str, start: int, end: int) -> Served:
        """The samples of all stages and epochs that hold one of the tokens [start, end) of a
        source's stream. The time it takes grows with the tokens asked for and the epochs only."""
        number = self.sources.index(source)
        found = [
            part
            for stage in range(len(self.stages))
            for part in (
                self._find_carried(stage, number, start, end),
                self._find_own(stage, number, start, end),
            )
        ]
        columns = np.concatenate(found, axis=1)
        columns = columns[:, np.lexsort((columns[1], columns[0]))]
        return Served(*columns)

    def _find_carried(self, stage: int, source: int, start: int, end: int) -> Ints:
        carried, seq_len = self._carried[stage], self.stages[stage].seq_len
        hit = (carried.source == source) & (carried.start < end) & (carried.start + seq_len > start)
        samples = np.flatnonzero(hit)
        samples = samples[samples < self.stages[stage].samples]
        stages = np.full_like(samples, stage)
        return np.stack((stages, samples, carried.epoch[samples], carried.start[samples]))

    def _find_own(self, stage: int, source: int, start: int, end: int) -> Ints:
        """(4, n): stage, sample, epoch and start, by undoing `_locate_own` step by step."""
        seq_len, atoms = self.stages[stage].seq_len, int(self._atoms[source])
        first = int(self._first_atom[stage][source])
        served = int(self._mixtures[stage].counts(np.array(self._atoms_used(stage)))[source])
        # Samples begin at multiples of their length: no atom need be looked at as a whole.
        starts = np.arange(start // seq_len, -(-end // seq_len)) * seq_len
        starts = starts[starts < atoms * self.atom]
        if not (served and starts.size):
            return np.zeros((4, 0), np.int64)
        epochs = np.arange(first // atoms, (first + served - 1) // atoms + 1)
        epoch, starts = (grid.ravel() for grid in np.meshgrid(epochs, starts, indexing="ij"))
        atom, inside = np.divmod(starts, self.atom)
        key = self._epoch_key(np.full_like(epoch, source), epoch)
        number = epoch * atoms + unpermute(atom, atoms, key) - first
        here = (number >= 0) & (number < served)
        number, inside, epoch, starts = number[here], inside[here], epoch[here], starts[here]
        window, in_window = np.divmod(self._mixtures[stage].position(source, number), WINDOW_ATOMS)
        pieces = self.atom // seq_len
        size = np.minimum(WINDOW_ATOMS, self._stage_atoms[stage] - window * WINDOW_ATOMS) * pieces
        shuffled = in_window * pieces + inside // seq_len
        sample = unpermute(shuffled, size, self._window_key(stage, window))
        sample += window * WINDOW_ATOMS * pieces + len(self._carried[stage].source)
        here = sample < self.stages[stage].samples
        rows = np.stack((np.full_like(sample, stage), sample, epoch, starts))
        return rows[:, here]

    def _window_key(self, stage: int, window: Ints) -> UInts:
        return mix(np.uint64(derive_key(self.seed, "window", stage)) + window.astype(np.uint64))

    def _epoch_key(self, source: Ints, epoch: Ints) -> UInts:
        return mix(self._source_keys[source] + epoch.astype(np.uint64))

    def _own_samples(self, stage: int) -> int:
        """Samples of a stage without those that the stage before left."""
        return max(0, self.stages[stage].samples - len(self._carried[stage].source))

    def _atoms_used(self, stage: int) -> int:
        """Atoms that are spoken for: all of the stage, or of the windows begun before its end."""
        if self.stages[stage].planned is None:
            return self._stage_atoms[stage]
        per_window = WINDOW_ATOMS * (self.atom // self.stages[stage].seq_len)
        windows = math.ceil(self._own_samples(stage) / per_window)
        return min(self._stage_atoms[stage], windows * WINDOW_ATOMS)

    def _left_over(self, number: int) -> Located:
        """What a stage that was ended early leaves to the next one, in pieces of the next one's
        length. Raises InputError where that is longer."""
        stage = self.stages[number]
        empty = Located(*np.zeros((3, 0), np.int64))
        if stage.planned is None or number + 1 == len(self.stages):
            return empty
        pieces = self.atom // stage.seq_len
        samples = np.arange(self._own_samples(number), self._atoms_used(number) * pieces)
        own, carried = self._locate_own(number, samples), self._carried[number][stage.samples :]
        following = self.stages[number + 1].seq_len
        if not len(samples) + len(carried.source):
            return empty
        if stage.seq_len % following:
            per_window = WINDOW_ATOMS * pieces
            raise InputError(
                f"stage {number} is ended early in the middle of a window, and the sequences of "
                f"the next one are longer ({following} tokens after {stage.seq_len}): end it at a "
                f"multiple of {per_window} samples, or begin with a stage of {stage.seq_len}."
            )
        parts = stage.seq_len // following
        source, epoch, start = (
            np.repeat(np.concatenate((getattr(carried, name), getattr(own, name))), parts)
            for name in ("source", "epoch", "start")
        )
        return Located(
            source, epoch, start + np.tile(np.arange(parts), len(start) // parts) * following
        )

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
        carried = self._carried[stage].source
        own = max(0, samples - len(carried))
        per_window = WINDOW_ATOMS * (self.atom // seq_len)
        windows, rest = divmod(own, per_window)
        whole = self._mixtures[stage].counts(np.array(windows * WINDOW_ATOMS)) * self.atom
        under_way = self._locate_own(stage, windows * per_window + np.arange(rest)).source
        pieces = np.concatenate((carried[:samples], under_way))
        return whole + np.bincount(pieces, minlength=len(self.sources)) * seq_len

    def same_past(self, other: SampleOrder, stage: int, samples: int) -> bool:
        """Whether both serve the same in all stages before this one, and in its first `samples`
        samples; decided by their plans, without locating a sample."""
        ours = [stage.samples for stage in self.stages[:stage]]
        theirs = [past.samples for past in other.stages[:stage]]
        return (
            (self.seed, self.atom, self.source_tokens, ours)
            == (other.seed, other.atom, other.source_tokens, theirs)
            and min(self.stages[stage].samples, other.stages[stage].samples) >= samples
            and all(
                self._past_of(number, count) == other._past_of(number, count)
                for number, count in enumerate([*ours, samples])
                if count
            )
        )

    def _past_of(self, number: int, samples: int) -> tuple[Any, ...]:
        """What decides the first `samples` samples of a stage beside its number: of its length only
        the size of the last window begun does."""
        stage, carried = self.stages[number], len(self._carried[number].source)
        begun = math.ceil(max(0, samples - carried) / (WINDOW_ATOMS * self.atom // stage.seq_len))
        atoms = min(self._stage_atoms[number], begun * WINDOW_ATOMS)
        first = self._first_atom[number].tolist()
        return stage.seq_len, self._mixtures[number].units, first, carried, atoms

    def epochs(self) -> dict[str, float]:
        """How often the whole plan reads each source."""
        last = self._first_atom[-1] + self._mixtures[-1].counts(np.array(self._atoms_used(-1)))
        return self.epochs_of(dict(zip(self.sources, (last * self.atom).tolist(), strict=True)))

    def epochs_of(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """How many epochs of its source each number of tokens is."""
        sizes = zip(self.sources, self._atoms.tolist(), strict=True)
        return {name: tokens[name] / (n * self.atom) if n else 0.0 for name, n in sizes}

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
                "stages": [stage.to_json() for stage in self.stages],
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
