"""The work of a peer, and its answer."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEQ = 512
"""Tokens per sequence of the peers, and of the held-out samples."""
BATCH = 8
"""Sequences per step of the peers: 4,096 tokens, as in the demo."""
WARM_UP = 0.05
"""Share of the steps in which the rate rises."""


@dataclass(frozen=True)
class Work:
    """A run of a peer.

    Attributes:
        stream: A file of token ids (uint16): shuffled documents, each with its end token.
        steps: Number of optimizer steps.
        precision: `bf16` or `fp32`.
        out: Folder for the weights, as one of stock transformers.
    """

    stream: Path
    steps: int
    seed: int
    precision: str
    out: Path

    def sequences(self) -> NDArray[np.int64]:
        """Returns (steps * BATCH, SEQ + 1) ids: the stream's rows in random order."""
        stream = np.load(self.stream, mmap_mode="r")
        rows = (len(stream) - 1) // SEQ
        order = np.random.default_rng(self.seed).permutation(rows)
        chosen = np.resize(order, self.steps * BATCH)
        return np.stack([stream[row * SEQ : (row + 1) * SEQ + 1] for row in chosen]).astype("int64")


def parsed() -> Work:
    """Returns the work that the command line describes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--out", type=Path, required=True)
    return Work(**vars(parser.parse_args()))


@dataclass(frozen=True)
class Answer:
    """Parameters, tokens, and the median seconds of a step of a run."""

    parameters: int
    tokens: int
    step_seconds: float

    @classmethod
    def of(cls, parameters: int, seconds: list[float]) -> Answer:
        """Returns the answer of a peer with the median of its steps."""
        return cls(
            parameters, len(seconds) * BATCH * SEQ, statistics.median(seconds[2:] or seconds)
        )

    def write(self, folder: Path) -> None:
        """Writes answer.json."""
        (folder / "answer.json").write_text(json.dumps(asdict(self)))
