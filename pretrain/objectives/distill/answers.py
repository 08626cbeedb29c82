"""A teacher's answers to a batch, and the interface of what gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from data_pipeline.sampling.batches import Batch
from model.network import Decoder


@dataclass(frozen=True)
class TeacherAnswers:
    """The k most probable next tokens of a teacher, for each position that this rank holds.

    ids: (batch, local seq, k) int64, different ids in each position, the most probable first.
    log_probabilities: (batch, local seq, k) float32, at temperature 1 over the whole vocabulary of
        the teacher.
    log_rest: (batch, local seq) float32, the logarithm of the probability of all other tokens
        together; -inf if there are none. 1 - sum(exp(log_probabilities)) would lose it to
        rounding where the teacher is sure.
    """

    ids: Tensor
    log_probabilities: Tensor
    log_rest: Tensor


class Teacher(Protocol):
    """A source of answers: a network next to the student, or a cache of its answers.

    identity: what names the teacher in env.json, checkpoints, the report and the model card, as
        JSON values: at least `path` and `fingerprint`, and `step` if it is a run.
    """

    identity: Mapping[str, Any]

    def answers(self, student: Decoder, batch: Batch) -> TeacherAnswers:
        """Returns the answers to a batch, without gradient.

        Context parallelism of the student decides which positions these are:
        `student.positions(seq_len, device)` lists them.
        """
        ...
