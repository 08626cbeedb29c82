"""Rearranges documents inside a sample for fill in the middle, as part of the order of samples.

Each part of a document in a sample is treated by itself, so nothing crosses the boundary of a
document or of a sample. An example with a sample of 16 tokens, of which the second document is
rearranged (prefix d e, middle f g h, suffix i; $ is EOS):

    read         a b c $ d e f g h i $ j k l m n
    psm          a b c $ P d e S i M f g h $ j k        P, S, M: the special tokens
    spm          a b c $ P S i M d e f g h $ j k

- The length of a sample stays the same. What follows moves back by the tokens that were added, and
  the tokens that no longer fit at the end of the sample are dropped (l m n), or padding that is
  there. A document that is cut by this is shortened first, so that it still has all its parts.
- Whether a document is rearranged, its format and where it is cut follow from the seed, the source,
  the epoch and the position of the document in the source alone. So a sample is the same on every
  rank, in every layout and after every restart (I1).
- Cuts are between tokens, and all are equally likely, also those that leave a part empty.
- The special tokens are not targets, because they are given when the model is used. The token
  `end` is a target, as is EOS. A token that the corpus masks is not a target, wherever it is moved.
- A part of fewer than MIN_TOKENS tokens stays as it is, and so does a document with text that
  contains one of the special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sampling.feistel import GOLDEN, derive_key
from data_pipeline.sampling.fim import FimConfig, FimTokens, added_tokens, fim_tokens
from data_pipeline.sampling.locations import Ints, SampleLocations
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.splitmix import mix
from data_pipeline.store.manifest import Manifest

Bools = NDArray[np.bool_]
MIN_TOKENS = 3
"""Smallest number of tokens, without BOS and EOS, of a part of a document that is rearranged."""
DRAWS = 4
"""Random numbers per document: whether it is rearranged, its format, and the two cuts."""
COUNTS = ("documents", "tokens", "dropped")
"""Counts per source: the rearranged parts of documents; their tokens, with the special ones, which
replace as many others at the end of samples; and the tokens of text that were dropped."""


class Part(NamedTuple):
    """A part of a document in a sample.

    Attributes:
        start: First token of the part in the sample as it is read.
        format: `psm` or `spm`, or an empty string if the part is not rearranged.
        tokens: Number of tokens that it has in the sample now, with special tokens.
        kept: Number of them that are its own.
    """

    start: int
    format: str
    tokens: int
    kept: int


@dataclass(frozen=True)
class SourceFim:
    """Fill in the middle for the documents of one source in one stage.

    Attributes:
        config: The options.
        tokens: Ids of the special tokens.
        key: Key of the random numbers of the source.
        bos_id: Id of BOS, which stays at the start of a document.
        eos_id: Id of EOS, which stays at its end.
    """

    config: FimConfig
    tokens: FimTokens
    key: int
    bos_id: int
    eos_id: int

    def draw(self, epoch: int, positions: Ints) -> NDArray[np.float64]:
        """Returns the random numbers of documents, (documents, DRAWS), each in [0, 1).

        positions: (documents,) offsets in the source's stream at which the parts start.
        """
        of_epoch = mix(np.array([self.key + epoch & 0xFFFFFFFFFFFFFFFF], np.uint64))
        of_part = mix(of_epoch + positions.astype(np.uint64))
        steps = np.arange(1, DRAWS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = mix(of_part[:, None] + steps) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def arrange(
        self,
        tokens: NDArray[np.integer],
        begins: Bools,
        padding: Bools | None,
        position: int,
        epoch: int,
    ) -> tuple[Ints, Bools, list[Part]]:
        """Returns a rearranged sample.

        Args:
            tokens: (length,) the sample as it is read, with the label of the last token.
            begins: (length - 1,) True at i if a document or a run of padding starts at i + 1.
            padding: (length,) True for padding; None if there is none.
            position: Offset of the sample in the source's stream.
            epoch: Epoch of the source.

        Returns:
            The place in `tokens` of each token, or -1 - id for a special token, (length,); the
            boundaries, like `begins`; and all parts that are at least partly in the sample.
        """
        length = len(tokens)
        starts = np.concatenate(([0], np.flatnonzero(begins) + 1))
        ends = np.append(starts[1:], length)
        draws = self.draw(epoch, position + starts)
        marked = np.isin(tokens, [self.tokens.prefix, self.tokens.suffix, self.tokens.middle])
        places = np.empty(length, np.int64)
        new_begins = np.zeros(length - 1, bool)
        parts, at = [], 0
        for start, end, draw in zip(starts.tolist(), ends.tolist(), draws, strict=True):
            if at >= length:
                break
            is_text = (padding is None or not padding[start]) and not marked[start:end].any()
            room = length - at
            moved = self._move(tokens, start, end, room, draw) if is_text else None
            form, order = moved or ("", np.arange(start, min(end, start + room)))
            if at:
                new_begins[at - 1] = True
            places[at : at + len(order)] = order
            at += len(order)
            parts.append(Part(start, form, len(order), int((order >= 0).sum())))
        return places, new_begins, parts

    def _move(
        self,
        tokens: NDArray[np.integer],
        start: int,
        end: int,
        room: int,
        draw: NDArray[np.float64],
    ) -> tuple[str, Ints] | None:
        """Returns the format and the places of a part in the first `room` tokens, None if as read.

        The part is [start, end) of the sample.
        """
        chosen, form, *cuts = draw.tolist()
        if chosen >= self.config.share:
            return None
        ids = self.tokens
        ends = tokens[end - 1] == self.eos_id
        if end - start + self._added(ends) > room:  # the sample ends within the document
            ends = False
            end = start + room - self._added(ends)
        first = start + (tokens[start] == self.bos_id != self.eos_id)
        last = end - 1 if ends else end
        size = last - first
        if size < MIN_TOKENS:
            return None
        low, high = sorted(first + int(cut * (size + 1)) for cut in cuts)
        prefix, middle, suffix = (
            np.arange(*span) for span in ((first, low), (low, high), (high, last))
        )
        before, between, after = ([-1 - of] for of in (ids.prefix, ids.suffix, ids.middle))
        if self.config.format == "mixed":
            name = "psm" if form < 0.5 else "spm"
        else:
            name = self.config.format
        if name == "psm":
            body = [before, prefix, between, suffix, after, middle]
        else:
            body = [before, between, suffix, after, prefix, middle]
        closing = [-1 - of for of in self._closing(ends)]
        whole = [np.arange(start, first), *body, closing, np.arange(last, end)]
        return name, np.concatenate([np.asarray(piece, np.int64) for piece in whole])

    def _added(self, has_eos: bool) -> int:
        """Returns the number of special tokens that a part of a document gets."""
        return 3 + len(self._closing(has_eos))

    def _closing(self, has_eos: bool) -> list[int]:
        """Returns the id of `end`, or nothing if there is none or it is the EOS that is there."""
        end = self.tokens.end
        return [] if end is None or (has_eos and end == self.eos_id) else [end]


class StageFim:
    """Fill in the middle for the samples of one stage.

    Args:
        order: The order of samples.
        number: Number of the stage.
        manifest: Manifest of the corpus, whose tokenizer has the special tokens.
    """

    def __init__(self, order: SampleOrder, number: int, manifest: Manifest) -> None:
        self.sources: dict[int, SourceFim] = {}
        """The sources whose documents are rearranged, by index in `order.sources`."""
        self.source_count = len(order.sources)
        fim = order.stages[number].fim
        added = added_tokens(manifest) if fim else {}
        ids = manifest.tokenizer
        for source, config in fim.items():
            key = f"recipe.stages, stage {number} (counted from 0): fim.{source}"
            self.sources[order.sources.index(source)] = SourceFim(
                config,
                fim_tokens(key, config, manifest, added),
                derive_key(order.seed, "fim", source),
                int(ids["bos_id"]),
                int(ids["eos_id"]),
            )

    def arrange(
        self,
        located: SampleLocations,
        row: int,
        tokens: NDArray[np.integer],
        begins: Bools,
        padding: Bools | None,
    ) -> tuple[Ints, Bools, list[Part]]:
        """Returns `SourceFim.arrange` of one sample of a batch; see `apply` for the arguments."""
        return self.sources[int(located.source[row])].arrange(
            tokens[row],
            begins[row],
            None if padding is None else padding[row],
            int(located.start[row]),
            int(located.epoch[row]),
        )

    def apply(
        self,
        located: SampleLocations,
        tokens: NDArray[np.integer],
        begins: Bools,
        padding: Bools | None,
        no_loss: NDArray[np.uint8],
    ) -> Ints:
        """Rearranges the samples of a batch in place, and returns what is counted.

        Args:
            located: Locations of the samples, (batch,).
            tokens: (batch, length) the samples as they are read.
            begins: (batch, length - 1) True at [row, i] if a document or a run of padding starts at
                i + 1.
            padding: (batch, length) True for padding; None if there is none.
            no_loss: (batch, length) 1 for each token that is not trained on.

        Returns:
            (sources, COUNTS) counts per source.
        """
        counts = np.zeros((self.source_count, len(COUNTS)), np.int64)
        for row, number in enumerate(located.source.tolist()):
            if number not in self.sources:
                continue
            is_padding = None if padding is None else padding[row]
            places, begins[row], parts = self.arrange(located, row, tokens, begins, padding)
            counts[number] += count_parts(parts, places, is_padding)
            is_new = places < 0
            at, new = np.maximum(places, 0), -1 - places[is_new]
            tokens[row] = tokens[row, at]
            tokens[row, is_new] = new
            no_loss[row] = no_loss[row, at]
            no_loss[row, is_new] = new != self.sources[number].tokens.end
            if padding is not None:
                padding[row] = padding[row, at] & ~is_new
        return counts


def fim_record(sources: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """Returns the counts of a step for its record and the ledger, as far as there are any.

    Args:
        sources: Names of the sources.
        counts: (sources * COUNTS,) counts, source by source; empty if no stage uses FIM.
    """
    rows = [counts[first : first + len(COUNTS)] for first in range(0, len(counts), len(COUNTS))]
    named = zip(sources, rows, strict=False)
    found = {name: dict(zip(COUNTS, row, strict=True)) for name, row in named if any(row)}
    return {"fim": found} if found else {}


def count_parts(parts: list[Part], places: Ints, padding: Bools | None) -> list[int]:
    """Returns the COUNTS of one sample, without the label of its last token.

    Args:
        parts: The parts of documents in the sample.
        places: (length,) the place of each token in the sample as it is read; see `arrange`.
        padding: (length,) True for padding in the sample as it is read; None if there is none.
    """
    moved = np.zeros(len(places) + 1, np.int64)
    ends = np.cumsum([part.tokens for part in parts])
    for part, end in zip(parts, ends.tolist(), strict=True):
        if part.format:
            moved[end - part.tokens : end] = 1
    dropped = np.ones(len(places), bool) if padding is None else ~padding
    dropped[places[places >= 0]] = False
    return [
        sum(bool(part.format) for part in parts),
        int(moved[: len(places) - 1].sum()),
        int(dropped[:-1].sum()),
    ]
