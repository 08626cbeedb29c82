"""The order of samples: sample i of a stage is a pure function of (sources, stages, seed, i).

The function is a composition of three steps. Each can be evaluated for a single index, and each can
be inverted. In this example there are two sources, `web` (17 tokens) and `code` (9 tokens), cut
into atoms (the units that are permuted) of 4 tokens, and one stage with sequences of 2 tokens and
weights 2:1. The seed is 0, and w4 is the part of `web` that starts at its token 4.

    atoms, 4 tokens      w0 w4 w8 w12           c0 c4      the last token is only ever a label
    1. mixture, 2:1      web  code  web  web   code  web   the source of atom t
    2. permuted atoms    w0   c4    w4   w12   c0    w8    each once per epoch of its source
    3. cut into samples  w0 w2  c4 c6  w4 w6  w12 w14  c0 c2  w8 w10       2 tokens each
       and shuffled      w12 c4 w4 w2 c0 w0 w14 w10 c2 w6 w8 c6            samples 0 to 11

1. `Mixture` decides which source serves atom t.
2. A keyed permutation, a different one for each epoch, decides which atom of the source is served.
   No token repeats before all tokens of the source have been served (I3), even if the sequence
   length and the mixture change between stages, because all stages share the same atoms. An atom is
   as long as the longest sequence of the plan, unless `recipe.atom_tokens` is set.
3. Each window of 256 atoms (fewer here) is cut into samples, which are permuted within the window.

Nothing is stored, so memory and start-up time do not depend on the number of tokens, and the result
does not depend on rank, layout, batch size or restarts (I1). Since each step can be inverted,
`SampleOrder.find` computes which samples contain a token without searching.

A stage can be ended early to change the mixture or the sequence length. It then keeps the windows
that it was started with (`Stage.planned_samples`), and the next stage first serves the rest of the
last window, so that nothing is lost or repeated. A stage can also read a corpus that has grown
(`Stage.source_tokens`); `epochs` explains how an epoch continues then.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from conf.errors import InputError
from data_pipeline.sampling.epochs import Epochs, check_epochs
from data_pipeline.sampling.feistel import derive_key, permute, unpermute
from data_pipeline.sampling.locations import Ints, SampleLocations, TokenUses
from data_pipeline.sampling.mixture import Mixture
from data_pipeline.sampling.stage import Stage, check_atom, check_growth
from data_pipeline.splitmix import UInts, mix

WINDOW_ATOMS = 256
FORMAT, FORMAT_OF_GROWN, FORMAT_OF_FIM, FORMAT_OF_OTHERS = FORMATS = 1, 2, 3, 4
"""Formats of `order.json`, of which earlier versions read only the first. The second is that of
runs with a stage whose corpus has grown, the third that of runs with fill in the middle, and the
fourth that of branches whose corpus lacks a source of their trunk's."""


class SampleOrder:
    """The order of the samples of all stages.

    Args:
        source_tokens: Tokens per source, for all stages that do not have their own.
        stages: Stages in order.
        seed: Seed of all permutations.
        max_epochs: Maximum number of epochs, for all sources or by source name; None for no limit.
        atom: Tokens per atom, a multiple of every stage's seq_len; by default the longest seq_len.
            Set it if a stage with longer sequences may be added later, so that the samples of
            earlier stages stay the same.

    Raises:
        InputError: The seq_len of a stage does not divide the atom, or a source has too few tokens,
            or fewer than in the stage before.
    """

    def __init__(
        self,
        source_tokens: Mapping[str, int],
        stages: Sequence[Stage],
        seed: int,
        max_epochs: float | Mapping[str, float] | None = None,
        atom: int | None = None,
    ) -> None:
        self.source_tokens = dict(source_tokens)
        self.stages = tuple(stages)
        sizes = [source_tokens, *(stage.source_tokens or {} for stage in stages)]
        self.sources = tuple(dict.fromkeys(source for size in sizes for source in size))
        self.seed = seed
        self.atom = atom or max(stage.seq_len for stage in stages)
        check_atom(stages, self.atom)
        check_growth(stages, source_tokens)
        self._mixtures = [
            Mixture([stage.weights.get(source, 0.0) for source in self.sources]) for stage in stages
        ]
        used = np.zeros(len(self.sources), np.int64)
        epochs = Epochs.of(seed, self.sources, self._atoms(source_tokens))
        known = dict(source_tokens)
        self._epochs: list[Epochs] = []
        """For each stage, the epochs of all sources as it and earlier stages determine them."""
        self._first_atom: list[Ints] = []
        """For each stage, the number of atoms that earlier stages have used, (sources,)."""
        self._remainders: list[SampleLocations] = []
        """For each stage, the samples left over by the previous stage, which are served first."""
        self._stage_atoms: list[int] = []
        """For each stage, the number of atoms in all its windows."""
        remainder = SampleLocations.empty()
        for number, stage in enumerate(self.stages):
            known |= self.tokens_of(number)  # a source that a branch does not read stays as it is
            epochs = epochs.grown(used, self._atoms(known))
            self._epochs.append(epochs)
            self._first_atom.append(used)
            self._remainders.append(remainder)
            planned = max(stage.samples, stage.planned_samples or 0)
            own = max(0, planned - len(remainder))
            self._stage_atoms.append(math.ceil(own * stage.seq_len / self.atom))
            used = used + self._mixtures[number].counts(np.array(self._reserved_atoms(number)))
            check_epochs(epochs, used, self.atom, known, max_epochs)
            remainder = self._remainder_after(number)

    def tokens_of(self, stage: int) -> Mapping[str, int]:
        """Returns the tokens per source in the corpus that a stage reads."""
        return self.stages[stage].source_tokens or self.source_tokens

    def _atoms(self, source_tokens: Mapping[str, int]) -> list[int]:
        """Returns the atoms per source: the last token of an atom needs one after it, its label."""
        tokens = [source_tokens.get(source, 0) for source in self.sources]
        return [max(0, (count - 1) // self.atom) for count in tokens]

    def locate(self, stage: int, samples: Ints) -> SampleLocations:
        """Returns the locations of samples in the streams of their sources.

        Args:
            stage: Index of the stage.
            samples: (n,) sample numbers, counted from the start of the stage.

        Raises:
            IndexError: A number is outside the stage.
        """
        samples = np.asarray(samples, np.int64)
        count = self.stages[stage].samples
        if samples.size and not 0 <= samples.min() <= samples.max() < count:
            raise IndexError(
                f"stage {stage} has samples 0 to {count - 1}, but samples {samples.min()} to "
                f"{samples.max()} were requested"
            )
        remainder = self._remainders[stage]
        number = len(remainder)
        if not number:
            return self._locate_own(stage, samples)
        own = self._locate_own(stage, np.maximum(0, samples - number))
        is_remainder = samples < number
        taken = remainder[np.where(is_remainder, samples, 0)]
        return SampleLocations(
            np.where(is_remainder, taken.source, own.source),
            np.where(is_remainder, taken.epoch, own.epoch),
            np.where(is_remainder, taken.start, own.start),
        )

    def _locate_own(self, stage: int, samples: Ints) -> SampleLocations:
        """Locates samples in the stage's own windows, which may continue after the stage's end."""
        if not self._stage_atoms[stage]:
            return SampleLocations.empty(samples.shape)
        seq_len, atoms = self.stages[stage].seq_len, self._stage_atoms[stage]
        pieces = self.atom // seq_len
        window, inside = np.divmod(samples, WINDOW_ATOMS * pieces)
        size = np.minimum(WINDOW_ATOMS, atoms - window * WINDOW_ATOMS) * pieces
        shuffled = permute(inside, size, self._window_key(stage, window))
        in_window, piece = np.divmod(shuffled, pieces)
        source, number = self._mixtures[stage].locate(window * WINDOW_ATOMS + in_window)
        number = number + self._first_atom[stage][source]
        epoch, atom = self._epochs[stage].locate(source, number)
        return SampleLocations(source, epoch, atom * self.atom + piece * seq_len)

    def find(self, source: str, start: int, end: int) -> TokenUses:
        """Returns the samples of all stages and epochs with tokens in [start, end) of a source.

        The time that this takes depends only on the number of tokens, stages and epochs.
        """
        number = self.sources.index(source)
        found = [
            part
            for stage in range(len(self.stages))
            for part in (
                self._find_in_remainder(stage, number, start, end),
                self._find_own(stage, number, start, end),
            )
        ]
        columns = np.concatenate(found, axis=1)
        columns = columns[:, np.lexsort((columns[1], columns[0]))]
        return TokenUses(*columns)

    def _find_in_remainder(self, stage: int, source: int, start: int, end: int) -> Ints:
        """Finds samples in the remainder. Returns (4, n): their stage, sample, epoch and start."""
        remainder, seq_len = self._remainders[stage], self.stages[stage].seq_len
        hit = (
            (remainder.source == source)
            & (remainder.start < end)
            & (remainder.start + seq_len > start)
        )
        samples = np.flatnonzero(hit)
        samples = samples[samples < self.stages[stage].samples]
        stages = np.full_like(samples, stage)
        return np.stack((stages, samples, remainder.epoch[samples], remainder.start[samples]))

    def _find_own(self, stage: int, source: int, start: int, end: int) -> Ints:
        """Finds samples in the stage's own windows, by inverting `_locate_own`.

        Returns an array like that of `_find_in_remainder`, (4, n).
        """
        seq_len, every = self.stages[stage].seq_len, self._epochs[stage]
        first = int(self._first_atom[stage][source])
        used = int(self._mixtures[stage].counts(np.array(self._reserved_atoms(stage)))[source])
        # Samples start at multiples of their length, so only those that overlap are considered.
        starts = np.arange(start // seq_len, -(-end // seq_len)) * seq_len
        starts = starts[starts < every.atoms[source] * self.atom]
        if not (used and starts.size):
            return np.zeros((4, 0), np.int64)
        ends, _ = every.locate(np.full(2, source), np.array([first, first + used - 1]))
        epochs = np.arange(ends[0], ends[1] + 1)
        epoch, starts = (grid.ravel() for grid in np.meshgrid(epochs, starts, indexing="ij"))
        atom, inside = np.divmod(starts, self.atom)
        number = every.number(source, epoch, atom) - first
        here = (number >= 0) & (number < used)
        number, inside, epoch, starts = number[here], inside[here], epoch[here], starts[here]
        window, in_window = np.divmod(self._mixtures[stage].position(source, number), WINDOW_ATOMS)
        pieces = self.atom // seq_len
        size = np.minimum(WINDOW_ATOMS, self._stage_atoms[stage] - window * WINDOW_ATOMS) * pieces
        shuffled = in_window * pieces + inside // seq_len
        sample = unpermute(shuffled, size, self._window_key(stage, window))
        sample += window * WINDOW_ATOMS * pieces + len(self._remainders[stage])
        here = sample < self.stages[stage].samples
        rows = np.stack((np.full_like(sample, stage), sample, epoch, starts))
        return rows[:, here]

    def _window_key(self, stage: int, window: Ints) -> UInts:
        return mix(np.uint64(derive_key(self.seed, "window", stage)) + window.astype(np.uint64))

    def _own_samples(self, stage: int) -> int:
        """Returns a stage's number of samples without those left over by the previous stage."""
        return max(0, self.stages[stage].samples - len(self._remainders[stage]))

    def _reserved_atoms(self, stage: int) -> int:
        """Returns the number of a stage's atoms that no later stage may use.

        These are all its atoms or, if it is ended early, those of the windows that were started.
        """
        if self.stages[stage].planned_samples is None:
            return self._stage_atoms[stage]
        per_window = WINDOW_ATOMS * (self.atom // self.stages[stage].seq_len)
        windows = math.ceil(self._own_samples(stage) / per_window)
        return min(self._stage_atoms[stage], windows * WINDOW_ATOMS)

    def _remainder_after(self, number: int) -> SampleLocations:
        """Returns what a stage leaves over if it is ended early, as samples of the next stage.

        Raises:
            InputError: The next stage cannot use them, because its sequences are longer.
        """
        stage = self.stages[number]
        if stage.planned_samples is None or number + 1 == len(self.stages):
            return SampleLocations.empty()
        pieces = self.atom // stage.seq_len
        samples = np.arange(self._own_samples(number), self._reserved_atoms(number) * pieces)
        own, earlier = self._locate_own(number, samples), self._remainders[number][stage.samples :]
        own, earlier = self._readable(number + 1, own), self._readable(number + 1, earlier)
        following = self.stages[number + 1].seq_len
        if not len(samples) + len(earlier):
            return SampleLocations.empty()
        if stage.seq_len % following:
            per_window = WINDOW_ATOMS * pieces
            raise InputError(
                f"recipe.stages: stage {number} (counted from 0) ends in the middle of a shuffle "
                "window, whose remaining samples cannot be joined into the longer sequences of "
                f"the next stage ({following} tokens, not {stage.seq_len}). Set the stage's tokens "
                f"to a multiple of {per_window * stage.seq_len}, or insert a stage with "
                f"seq_len={stage.seq_len}."
            )
        parts = stage.seq_len // following
        source, epoch, start = (
            np.repeat(np.concatenate((getattr(earlier, name), getattr(own, name))), parts)
            for name in ("source", "epoch", "start")
        )
        return SampleLocations(
            source, epoch, start + np.tile(np.arange(parts), len(start) // parts) * following
        )

    def _readable(self, stage: int, samples: SampleLocations) -> SampleLocations:
        """Returns the samples whose source is in the corpus that a stage reads."""
        known = self.tokens_of(stage)
        here = np.array([source in known for source in self.sources])
        return samples[here[samples.source]]

    def consumed(self, stage: int, samples: int) -> dict[str, int]:
        """Returns the tokens per source in all earlier stages and the first `samples` of this one.

        Complete windows are counted in closed form, and the last one sample by sample.
        """
        total = self._tokens_before_stage[stage] + self._tokens_in_stage(stage, samples)
        return dict(zip(self.sources, total.tolist(), strict=True))

    @cached_property
    def _tokens_before_stage(self) -> list[Ints]:
        before = [np.zeros(len(self.sources), np.int64)]
        for number, stage in enumerate(self.stages):
            before.append(before[-1] + self._tokens_in_stage(number, stage.samples))
        return before

    def _tokens_in_stage(self, stage: int, samples: int) -> Ints:
        seq_len = self.stages[stage].seq_len
        remainder = self._remainders[stage].source
        own = max(0, samples - len(remainder))
        per_window = WINDOW_ATOMS * (self.atom // seq_len)
        windows, rest = divmod(own, per_window)
        complete = self._mixtures[stage].counts(np.array(windows * WINDOW_ATOMS)) * self.atom
        last = self._locate_own(stage, windows * per_window + np.arange(rest)).source
        pieces = np.concatenate((remainder[:samples], last))
        return complete + np.bincount(pieces, minlength=len(self.sources)) * seq_len

    def has_same_history(self, other: SampleOrder, stage: int, samples: int) -> bool:
        """Returns True if both orders are the same up to the first `samples` samples of a stage.

        Only the inputs of the orders are compared, and no sample is located.
        """
        ours = [stage.samples for stage in self.stages[:stage]]
        theirs = [past.samples for past in other.stages[:stage]]
        return (
            (self.seed, self.atom, self.source_tokens, ours)
            == (other.seed, other.atom, other.source_tokens, theirs)
            and min(self.stages[stage].samples, other.stages[stage].samples) >= samples
            and all(
                self._determines(number, count) == other._determines(number, count)
                for number, count in enumerate([*ours, samples])
                if count
            )
        )

    def _determines(self, number: int, samples: int) -> tuple[Any, ...]:
        """Returns everything that determines the first `samples` samples of a stage.

        The length of the stage matters only in so far as it limits the size of the last window.
        """
        stage, remainder = self.stages[number], len(self._remainders[number])
        per_window = WINDOW_ATOMS * self.atom // stage.seq_len
        started = math.ceil(max(0, samples - remainder) / per_window)
        atoms = min(self._stage_atoms[number], started * WINDOW_ATOMS)
        units, first = self._mixtures[number].units, self._first_atom[number].tolist()
        fim = [stage.fim.get(name) for name in self.sources]
        of_sources = zip(units, first, self._epochs[number].ranges, fim, strict=True)
        served = {name: of for name, of in zip(self.sources, of_sources, strict=True) if of[0]}
        return stage.seq_len, served, remainder, atoms

    def epochs(self) -> dict[str, float]:
        """Returns the number of epochs of each source in the whole plan."""
        last = self._first_atom[-1] + self._mixtures[-1].counts(np.array(self._reserved_atoms(-1)))
        return self.epochs_of(-1, dict(zip(self.sources, (last * self.atom).tolist(), strict=True)))

    def epochs_of(self, stage: int, tokens: Mapping[str, int]) -> dict[str, float]:
        """Returns the epochs that each source has served in a stage, after a number of tokens.

        An epoch has the length that it has in the corpus of the stage.
        """
        counts = [tokens[source] for source in self.sources]
        return dict(zip(self.sources, self._epochs[stage].passes(counts, self.atom), strict=True))

    def to_json(self) -> str:
        """Returns everything that determines the order, as the content of `order.json`."""
        return json.dumps(
            {
                "format": self._format,
                "seed": self.seed,
                "atom": self.atom,
                "window_atoms": WINDOW_ATOMS,
                "source_tokens": self.source_tokens,
                "stages": [stage.to_json() for stage in self.stages],
            },
            indent=1,
        )

    @property
    def _format(self) -> int:
        known: dict[str, int] = {}
        for number in range(len(self.stages)):
            known |= self.tokens_of(number)
            if known.keys() - self.tokens_of(number).keys():
                return FORMAT_OF_OTHERS
        if any(stage.fim for stage in self.stages):
            return FORMAT_OF_FIM
        has_grown = any(stage.source_tokens for stage in self.stages)
        return FORMAT_OF_GROWN if has_grown else FORMAT

    @classmethod
    def from_json(cls, text: str) -> SampleOrder:
        """Returns the order that is described by a result of `to_json`."""
        fields = json.loads(text)
        if fields["format"] not in FORMATS or fields["window_atoms"] != WINDOW_ATOMS:
            raise InputError(
                f"order.json: the order of samples was written in format {fields['format']} with "
                f"windows of {fields['window_atoms']} atoms, but this version reads formats "
                f"{', '.join(map(str, FORMATS))} with windows of {WINDOW_ATOMS}. Use the "
                "version that wrote the file."
            )
        stages = [Stage.from_json(stage) for stage in fields["stages"]]
        return cls(fields["source_tokens"], stages, fields["seed"], atom=fields["atom"])

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything that determines the order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
