"""The teacher of `python -m pretrain teach`: a whole network in each process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from conf.errors import InputError
from conf.machine import bf16_verdict, processor
from data_pipeline.sampling.batches import Batch
from model.attention.backends import usable_backends
from model.logits import TopK
from pretrain.config import AUTO, ParallelConfig
from pretrain.hardware import compute_dtype
from pretrain.objectives.distill.answers import TeacherAnswers
from pretrain.objectives.distill.online import OnlineTeacher, check_network
from pretrain.objectives.distill.sources import check_tokenizer, open_network
from pretrain.parallel.mesh import make_layout
from pretrain.processes import start
from pretrain.teacher_cache.config import TeachConfig
from pretrain.teacher_cache.teaching import Answer, Teaching


class Network:
    """The network of a teacher, which is loaded when it is needed.

    Attributes:
        identity: The identity of the teacher (`objectives.distill.answers.Teacher`).

    Raises:
        InputError: The teacher does not exist, or does not fit the corpus or the recipe.
    """

    def __init__(self, config: TeachConfig, teaching: Teaching) -> None:
        self.source = open_network(str(config.model))
        corpus, plan = teaching.corpus, teaching.run.plan
        self._parallel = ParallelConfig(micro_batch_tokens=config.micro_batch_tokens, compile=False)
        try:
            check_network(self.source.network, self._parallel, plan, corpus)
            check_tokenizer(self.source.tokenizer, corpus)
        except InputError as error:
            raise InputError(f"model={config.model}: {error}") from None
        if config.top_k > corpus.vocab_size:
            raise InputError(
                f"top_k={config.top_k}: expected at most {corpus.vocab_size}, the vocabulary size "
                "of the corpus."
            )
        self._top_k = TopK(config.top_k, corpus.vocab_size)
        self._precision = config.precision
        self.identity: dict[str, Any] = dict(self.source.identity())

    def precision(self, device: torch.device) -> str:
        """Returns the precision of the matrix products on a device."""
        if self._precision != AUTO:
            return self._precision
        return "bf16" if bf16_verdict(processor(device)).native else "fp32"

    def load(self, device: torch.device) -> Answer:
        """Loads the weights, and returns a function that answers batches."""
        layout = make_layout((1, 1, 1, 1), device)
        precision = self.precision(device)
        backends = usable_backends(device, compute_dtype(precision))
        teacher = OnlineTeacher(self.source, self._top_k, layout, self._parallel, precision, device)

        def answer(batch: Batch) -> TeacherAnswers:
            backend = self._backend(backends, batch.tokens.shape[1])
            return teacher.answer(batch.to(device), backend)

        return answer

    def _backend(self, usable: list[str], seq_len: int) -> str:
        """Returns the attention backend, the same in all processes with the same packages."""
        if "varlen" in usable:
            return "varlen"
        window = self.source.network.sliding_window
        return "blocks" if window and window < seq_len and "blocks" in usable else "sdpa"


@contextmanager
def process_alone(device: str) -> Iterator[torch.device]:
    """Yields the device of this process, in a process group of its own.

    Processes that torchrun or SLURM has started together do not communicate.
    """
    processes = start(device, alone=True)
    try:
        yield processes.device
    finally:
        dist.destroy_process_group()
