"""The logits of the output layer: their bound, their shards, and the most probable tokens."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK_TOKENS = 2048
"""Number of tokens whose logits are held at once."""


class VocabularyShard(Protocol):
    """One rank's rows of a vocabulary that is split over ranks.

    Attributes:
        start: First token id of this shard.
    """

    start: int

    def reduce_max(self, x: Tensor) -> Tensor:
        """Returns the elementwise maximum over all shards."""

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Returns the elementwise sum over all shards."""

    def gather(self, x: Tensor) -> Tensor:
        """Returns the columns of x (tokens, columns) of all shards, in the order of the shards."""


class TopK(NamedTuple):
    """Which answers a head gives instead of logits.

    Attributes:
        number: Number of most probable tokens.
        ids: Only the ids below this one are chosen. Padding of the vocabulary has higher ids.
    """

    number: int
    ids: int


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Returns softcap * tanh(logits / softcap), or the logits if there is no bound."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def local_ids(ids: Tensor, rows: int, shard: VocabularyShard | None) -> tuple[Tensor, Tensor]:
    """Returns the rows of ids in this rank's shard, and whether they are in it.

    Ids of other shards get row 0.

    Args:
        ids: Ids of the whole vocabulary.
        rows: Number of rows of the shard.
        shard: The shard; None for a whole vocabulary.
    """
    local = ids - (shard.start if shard else 0)
    here = (local >= 0) & (local < rows)
    return torch.where(here, local, 0), here


def remove_columns(exponentials: Tensor, local: Tensor, here: Tensor) -> None:
    """Sets the entries (tokens, k) of a tensor (tokens, rows) to exactly zero, in place.

    Subtracting an entry from itself leaves row 0 unchanged for ids of other shards.
    """
    found = torch.where(here, exponentials.gather(1, local), 0.0)
    exponentials.scatter_add_(1, local, -found)


@torch.no_grad()
def top_answers(
    hidden: Tensor,
    weight: Tensor,
    top_k: TopK,
    shard: VocabularyShard | None = None,
    softcap: float | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the most probable tokens of softmax(hidden @ weight.T), without whole logits.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden), or this rank's rows of it.
        top_k: The number of tokens k, and the ids to choose from.
        shard: The rows that `weight` holds, if the vocabulary is split over ranks. All ranks return
            the same.
        softcap: Bound of the logits; None for none.
        chunk_tokens: Number of tokens whose logits are held at once.

    Returns:
        The ids (tokens, k), the most probable first; the logarithms of their probabilities
        (tokens, k), float32; and that of the probability of all other tokens together (tokens,),
        float32, -inf if it is zero.
    """
    tokens, device = len(hidden), hidden.device
    ids = torch.empty(tokens, top_k.number, dtype=torch.int64, device=device)
    scores = torch.empty(tokens, top_k.number, dtype=torch.float32, device=device)
    rest = torch.empty(tokens, dtype=torch.float32, device=device)
    start = shard.start if shard else 0
    candidates = max(0, min(len(weight), top_k.ids - start))
    for first in range(0, tokens, chunk_tokens):
        rows = slice(first, first + chunk_tokens)
        logits = capped((hidden[rows] @ weight.t()).float(), softcap)
        if shard is None:
            scores[rows], ids[rows] = logits[:, :candidates].topk(top_k.number)
        else:
            # Each shard offers as many candidates; those that it lacks have probability 0.
            width = min(top_k.number, len(weight))
            offered = logits.clone()
            offered[:, candidates:] = -torch.inf
            best, places = offered.topk(width)
            best, places = shard.gather(best), shard.gather(places + start)
            scores[rows], order = best.topk(top_k.number)
            ids[rows] = places.gather(1, order)
        largest = logits.amax(-1, keepdim=True)
        largest = shard.reduce_max(largest) if shard else largest
        exponentials = logits.sub_(largest).exp_()
        remove_columns(exponentials, *local_ids(ids[rows], len(weight), shard))
        others = exponentials.sum(-1)
        others = shard.reduce_sum(others) if shard else others
        scores[rows] -= largest
        total = (others + scores[rows].exp().sum(-1)).log()
        scores[rows] -= total[:, None]
        rest[rows] = others.log() - total
    return ids, scores, rest
