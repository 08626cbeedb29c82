"""Decides which atom of a source is served next, also if the corpus grows between two stages.

Each epoch of a source serves its atoms in a permutation of its own. A source that grows from 4 to 7
atoms after 2 atoms of an epoch were served:

    position             0  1 | 2  3  4  5  6
    before               a1 a3| a0 a2
    after                a1 a3| a5 a0 a4 a6 a2       the next epoch permutes all 7 atoms

The positions from 2 on are permuted by a key of this growth. A position below 4 then serves what it
served before, and another position the atom of the same number, which was added. What was served
stays as it was, and the rest of the epoch is what was left of it together with what was added, so
no atom repeats before all have been served. An epoch during which a source grows several times is a
composition of such permutations, so it can be evaluated for a single position, and inverted.

An epoch ends when an atom of the next one is served. A source that grows after exactly one epoch
therefore first serves what was added.

The tokens of a source are those it had before, followed by those that were added, and atoms are cut
from its start. An atom thus stays the same in all later editions. The tokens at the end that did
not fill an atom are part of the first atom that is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from data_pipeline.sampling.feistel import derive_key, permute, unpermute
from data_pipeline.sampling.locations import Ints
from data_pipeline.splitmix import UInts, mix

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Growth:
    """The growth of a source during an epoch.

    Attributes:
        served: Atoms of the epoch that were served before.
        atoms: Atoms of the source after it.
        key: Key of the permutation of the rest of the epoch.
    """

    served: int
    atoms: int
    key: int


@dataclass(frozen=True)
class EpochRange:
    """Consecutive epochs of a source with the same number of atoms.

    Attributes:
        start: Number of atoms that the source served in earlier epochs.
        epoch: The first of these epochs.
        first_atoms: Atoms of the source at the start of the first epoch.
        growths: The growths during the first epoch.
    """

    start: int
    epoch: int
    first_atoms: int
    growths: tuple[Growth, ...] = ()

    @property
    def atoms(self) -> int:
        """Number of atoms in each epoch."""
        return self.growths[-1].atoms if self.growths else self.first_atoms

    def atom(self, position: Ints, key: UInts) -> Ints:
        """Returns the atom at each position of the first epoch. key: the key of that epoch."""
        atom = position.copy()
        for growth in reversed(self.growths):
            late = (atom >= growth.served) & (atom < growth.atoms)
            rest = atom[late] - growth.served
            atom[late] = growth.served + permute(rest, growth.atoms - growth.served, growth.key)
        early = atom < self.first_atoms
        atom[early] = permute(atom[early], self.first_atoms, key[early])
        return atom

    def position(self, atom: Ints, key: UInts) -> Ints:
        """Returns the position of each atom in the first epoch, the inverse of `atom`."""
        position = atom.copy()
        early = atom < self.first_atoms
        position[early] = unpermute(atom[early], self.first_atoms, key[early])
        for growth in self.growths:
            late = (position >= growth.served) & (position < growth.atoms)
            rest = position[late] - growth.served
            position[late] = growth.served + unpermute(
                rest, growth.atoms - growth.served, growth.key
            )
        return position


class Epochs:
    """The epochs of all sources, as the stages up to one of them determine them.

    The atoms that a source serves are numbered from 0, over all epochs.

    Args:
        seed: Seed of all permutations.
        sources: Names of the sources.
        ranges: The epochs of each source, in ranges.
    """

    def __init__(
        self, seed: int, sources: Sequence[str], ranges: Sequence[Sequence[EpochRange]]
    ) -> None:
        self.seed = seed
        self.sources = tuple(sources)
        self.ranges = tuple(map(tuple, ranges))
        self.atoms = np.array([of_source[-1].atoms for of_source in ranges], np.int64)
        """Atoms per source, (sources,)."""
        self._keys = np.array([derive_key(seed, "source", name) for name in sources], np.uint64)
        self._starts = _table([[part.start for part in parts] for parts in ranges])
        self._firsts = _table([[part.epoch for part in parts] for parts in ranges])
        self._sizes = _table([[part.atoms for part in parts] for parts in ranges])
        self._grown = [
            (source, part) for source, parts in enumerate(ranges) for part in parts if part.growths
        ]

    @classmethod
    def of(cls, seed: int, sources: Sequence[str], atoms: Sequence[int]) -> Epochs:
        """Returns the epochs of sources that have not grown. atoms: atoms per source."""
        return cls(seed, sources, [[EpochRange(0, 0, count)] for count in atoms])

    def grown(self, served: Ints, atoms: Sequence[int]) -> Epochs:
        """Returns the epochs of sources that have grown.

        Args:
            served: (sources,) number of atoms that each source has served.
            atoms: (sources,) atoms per source now.
        """
        if list(atoms) == self.atoms.tolist():
            return self
        changes = zip(self.sources, self.ranges, served.tolist(), atoms, strict=True)
        return Epochs(self.seed, self.sources, [self._grow(*change) for change in changes])

    def _grow(
        self, source: str, ranges: tuple[EpochRange, ...], served: int, atoms: int
    ) -> tuple[EpochRange, ...]:
        *earlier, last = ranges
        if atoms == last.atoms:
            return ranges
        if not served:
            return (EpochRange(0, 0, atoms),)
        epochs = (served - 1 - last.start) // last.atoms
        epoch, start = last.epoch + epochs, last.start + epochs * last.atoms
        key = derive_key(self.seed, "growth", source, epoch, atoms)
        growth = Growth(served - start, atoms, key)
        if epochs == 0:
            return (*earlier, replace(last, growths=(*last.growths, growth)))
        return (*ranges, EpochRange(start, epoch, last.atoms, (growth,)))

    def locate(self, source: Ints, number: Ints) -> tuple[Ints, Ints]:
        """Returns the epoch and the atom of each number. All arrays are (n,)."""
        part = (self._starts[source] <= number[:, None]).sum(axis=1) - 1
        size = self._sizes[source, part]
        epoch, position = np.divmod(number - self._starts[source, part], size)
        epoch += self._firsts[source, part]
        key = self.key(source, epoch)
        atom = permute(position, size, key)
        for grown, first in self._grown:
            here = (source == grown) & (epoch == first.epoch)
            atom[here] = first.atom(position[here], key[here])
        return epoch, atom

    def number(self, source: int, epoch: Ints, atom: Ints) -> Ints:
        """Inverts `locate` for one source. The number is -1 if an epoch does not have an atom."""
        part = (self._firsts[source] <= epoch[:, None]).sum(axis=1) - 1
        size = self._sizes[source, part]
        key = self.key(np.full_like(epoch, source), epoch)
        exists = atom < size
        position = unpermute(np.where(exists, atom, 0), size, key)
        for grown, first in self._grown:
            here = (epoch == first.epoch) & exists & (source == grown)
            position[here] = first.position(atom[here], key[here])
        start = self._starts[source, part] + (epoch - self._firsts[source, part]) * size
        return np.where(exists, start + position, -1)

    def key(self, source: Ints, epoch: Ints) -> UInts:
        """Returns the key of the permutation of an epoch."""
        return mix(self._keys[source] + epoch.astype(np.uint64))

    def passes(self, tokens: Sequence[int], atom: int) -> list[float]:
        """Returns the epochs that each source has served after a number of its tokens.

        Args:
            tokens: (sources,) tokens that each source has served.
            atom: Tokens per atom.
        """
        found = []
        for parts, served in zip(self.ranges, tokens, strict=True):
            part = next(part for part in reversed(parts) if part.start * atom <= served)
            size = part.atoms * atom
            found.append(part.epoch + (served - part.start * atom) / size if size else 0.0)
        return found


def _table(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Returns rows of different length as one array, filled up with NEVER."""
    table = np.full((len(rows), max(map(len, rows))), NEVER)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def check_epochs(
    epochs: Epochs,
    used: Ints,
    atom: int,
    source_tokens: Mapping[str, int],
    limit: float | Mapping[str, float] | None,
) -> None:
    """Raises InputError if a source is too small, or served more often than `limit` epochs.

    Args:
        epochs: The epochs of all sources.
        used: (sources,) atoms that each source has served.
        atom: Tokens per atom.
        source_tokens: Tokens per source.
        limit: Maximum number of epochs, for all sources or by source name; None for no limit.
    """
    passes = epochs.passes((used * atom).tolist(), atom)
    for number in used.nonzero()[0].tolist():
        source, times = epochs.sources[number], passes[number]
        tokens = source_tokens.get(source, 0)
        if not epochs.atoms[number]:
            raise InputError(
                f"source '{source}' has {tokens} tokens, but at least {atom + 1} are needed, one "
                "atom of the order and the label after it. Add text, or remove the source from "
                "the mixture."
            )
        most = limit.get(source) if isinstance(limit, Mapping) else limit
        if most is not None and times > most:
            raise InputError(
                f"data.max_epochs={most:g}: the recipe reads source '{source}' ({tokens:,} tokens) "
                f"{times:.2f} times. Add text, reduce the weight of the source or the tokens of "
                "the recipe, or raise data.max_epochs."
            )
