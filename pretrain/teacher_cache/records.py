"""The stored form of a teacher's answers: one record of a fixed size per sample.

A record has a hash of the sample's context and, for each position, the ids of the k most probable
next tokens, most probable first, a code of 16 bits per log-probability, and a code of the
probability of all other tokens together. With k = 64 and a vocabulary of up to 65,536 ids, this is

    64 x 2 bytes of ids + 64 x 2 bytes of codes + 2 bytes = 258 bytes per token

The code of a log-probability x is the square root of -x / 32, as a fraction of 65,535. Codes are
therefore the closest where probabilities are large: the error is below 0.0001 nats for
probabilities above 1/e, and below 0.0005 down to exp(-32), where codes end. (float16 needs the same
bytes, and has an error of 0.004 at -8.) Reading scales the probabilities, so that all of them sum
to 1. The error of a log-probability is then below ERROR_NATS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.sampling.batches import Batch
from data_pipeline.store.checksums import BLOCK_BYTES, CHECKSUM

LEAST = -32.0
"""Smallest log-probability that a code expresses, in nats."""
CODES = 65535
ERROR_NATS = 1e-3
"""Bound of the error of a log-probability above LEAST, after reading."""
HASH_BYTES = 8
Records = NDArray[np.void]


@dataclass(frozen=True)
class RecordForm:
    """The form of the records of one sequence length.

    seq_len: number of positions.
    top_k: number of ids per position.
    vocab_size: number of ids of the vocabulary, which determines the bytes of an id.
    """

    seq_len: int
    top_k: int
    vocab_size: int

    @property
    def id_type(self) -> np.dtype:
        """Returns the type of ids: two bytes if they are sufficient, else four."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def position_bytes(self) -> int:
        """Returns the bytes per token, without the hash of the sample."""
        return self.top_k * (self.id_type.itemsize + 2) + 2

    @property
    def dtype(self) -> np.dtype:
        """Returns the type of a record: `context`, and per position `ids`, `codes` and `rest`."""
        of_position = [
            ("ids", self.id_type, (self.top_k,)),
            ("codes", "<u2", (self.top_k,)),
            ("rest", "<u2"),
        ]
        return np.dtype([("context", "<u8"), ("positions", of_position, (self.seq_len,))])

    @property
    def record_bytes(self) -> int:
        """Returns the bytes of a record."""
        return HASH_BYTES + self.seq_len * self.position_bytes

    @property
    def bytes_per_token(self) -> float:
        """Returns the bytes per token on disk, with hashes and checksums."""
        return self.record_bytes / self.seq_len * (1 + CHECKSUM.itemsize / BLOCK_BYTES)


def context_hashes(batch: Batch) -> NDArray[np.uint64]:
    """Returns a hash per real sample of what a network sees of it: tokens and document starts.

    batch: as the network gets it, so a batch whose documents are joined has one document per row.
    """
    rows, seq_len = len(batch.samples), batch.tokens.shape[1]
    tokens = batch.tokens[:rows].numpy().astype("<u4")
    starts = batch.cu_seqlens.numpy().astype("<i8")
    edges = np.searchsorted(starts, np.arange(rows + 1) * seq_len)
    hashes = np.empty(rows, np.uint64)
    for row in range(rows):
        inside = starts[edges[row] : edges[row + 1]] - row * seq_len
        hashes[row] = xxhash.xxh3_64_intdigest(tokens[row].tobytes() + inside.tobytes())
    return hashes


def encode(
    form: RecordForm,
    contexts: NDArray[np.uint64],
    ids: Tensor,
    log_probabilities: Tensor,
    log_rest: Tensor,
) -> Records:
    """Returns the records of samples, (samples,).

    Args:
        form: The form of the records.
        contexts: (samples,) hashes of the samples' contexts.
        ids: (samples, seq, k) ids, in any order.
        log_probabilities: (samples, seq, k) float32 log-probabilities of the ids.
        log_rest: (samples, seq) float32 logarithm of the probability of all other ids; -inf if
            there are none.
    """
    # Among equal log-probabilities, smaller ids come first, so that records are reproducible.
    by_id = ids.argsort(dim=-1)
    ids, values = ids.gather(-1, by_id), log_probabilities.gather(-1, by_id)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    records = np.zeros(len(contexts), form.dtype)
    positions = records["positions"]
    records["context"] = contexts
    positions["ids"] = ids.gather(-1, order).cpu().numpy()
    positions["codes"] = _codes(values)
    positions["rest"] = _codes(log_rest)
    return records


def _codes(log_probabilities: Tensor) -> NDArray[np.uint16]:
    """Returns the codes of log-probabilities."""
    share = (log_probabilities.double() / LEAST).clamp(0, 1)
    return (share.sqrt() * CODES).round().to(torch.int32).cpu().numpy().astype(np.uint16)


def as_bytes(records: Records, rows: int) -> Tensor:
    """Returns the positions of records as uint8 (rows, seq, position_bytes), padded with zeros."""
    positions = np.ascontiguousarray(records["positions"])
    shape = (rows, *positions.shape[1:], positions.itemsize)
    padded = np.zeros(shape, np.uint8)
    padded[: len(positions)] = positions.view(np.uint8).reshape(-1, *shape[1:])
    return torch.from_numpy(padded)


def decode(form: RecordForm, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the ids, log-probabilities and log_rest that were encoded.

    Args:
        form: The form of the records.
        raw: (..., position_bytes) uint8 on any device. Zeros give finite values.
    """
    width, k = form.id_type.itemsize, form.top_k
    ids, codes, rest = raw.split((width * k, 2 * k, 2), -1)
    values, log_rest = _values(codes), _values(rest)[..., 0]
    log_rest = torch.where(log_rest > LEAST, log_rest, -torch.inf)
    total = torch.logaddexp(values.logsumexp(-1), log_rest)
    return _integers(ids, width), values - total[..., None], log_rest - total


def _integers(raw: Tensor, width: int) -> Tensor:
    """Returns int64 numbers from the bytes of unsigned ones, with which torch computes little."""
    signed, mask = (torch.int16, 0xFFFF) if width == 2 else (torch.int32, 0xFFFFFFFF)
    return raw.contiguous().view(signed).long() & mask


def _values(raw: Tensor) -> Tensor:
    """Returns the float32 log-probabilities of the bytes of codes."""
    return (_integers(raw, 2).float() / CODES).square() * LEAST
