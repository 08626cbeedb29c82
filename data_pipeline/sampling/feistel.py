"""Keyed permutations that can be evaluated for a single index, without storing a shuffled array.

They are Feistel networks of six rounds over the smallest even number of bits that can represent the
range. Results outside the range are mapped again until they are inside (cycle walking, Black and
Rogaway, 2002). The round function is the finalizer of splitmix64 (Steele et al., 2014). Affine maps
would not be enough, because traces of a sorted source would remain visible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_pipeline.splitmix import UInts, mix

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15


def derive_key(*parts: str | int) -> int:
    """Returns a 64-bit key from names and numbers, the same on every machine and in any process."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permute(
    index: NDArray[np.int64], size: NDArray[np.int64] | int, key: UInts | int
) -> NDArray[np.int64]:
    """Returns the image of each index under the permutation of range(size) that the key selects.

    The arguments are broadcast, so every element may have its own range and key. They satisfy
    0 <= index < size < 2**62.
    """
    return _walk(index, size, key, _network)


def unpermute(
    index: NDArray[np.int64], size: NDArray[np.int64] | int, key: UInts | int
) -> NDArray[np.int64]:
    """Returns the inverse of `permute` with the same size and key."""
    return _walk(index, size, key, _inverse_network)


def _walk(
    index: NDArray[np.int64],
    size: NDArray[np.int64] | int,
    key: UInts | int,
    network: Callable[[UInts, UInts, UInts], UInts],
) -> NDArray[np.int64]:
    """Applies the network to each index repeatedly until the result is in its range."""
    broadcast = np.broadcast_arrays(
        np.asarray(index, np.uint64), np.asarray(size, np.uint64), np.asarray(key, np.uint64)
    )
    index_, size_, key_ = (array.ravel() for array in broadcast)
    bits = np.ceil(np.log2(np.maximum(size_, 2).astype(np.float64))).astype(np.uint64)
    bits += ((np.uint64(1) << bits) < size_).astype(np.uint64)  # if the float was rounded down
    half = (bits + np.uint64(1)) // np.uint64(2)
    out = network(index_, half, key_)
    outside = np.flatnonzero(out >= size_)
    while outside.size:
        out[outside] = network(out[outside], half[outside], key_[outside])
        outside = outside[out[outside] >= size_[outside]]
    return out.astype(np.int64).reshape(broadcast[0].shape)


def _round_key(key: UInts, number: int) -> UInts:
    return key + np.uint64(GOLDEN * (number + 1) & 0xFFFFFFFFFFFFFFFF)


def _network(x: UInts, half: UInts, key: UInts) -> UInts:
    """Permutes the integers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(right + _round_key(key, number)) & mask)
    return (left << half) | right


def _inverse_network(x: UInts, half: UInts, key: UInts) -> UInts:
    """Inverts the rounds of `_network`, starting with the last."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in reversed(range(ROUNDS)):
        mixed: UInts = mix(left + _round_key(key, number)) & mask
        left, right = mixed ^ right, left
    return (left << half) | right
