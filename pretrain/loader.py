"""Reads the micro-batches of one rank, a few steps ahead of training.

The order of samples does not depend on ranks (I1). Each rank takes its share of the global batch.
If the batch does not divide evenly over the ranks, blank samples fill the last micro-batch. The
samples of a step follow from its number, so later steps can be prefetched at any time.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.sampling.batches import Batch, BatchReader
from data_pipeline.sampling.dealing import deal_step
from data_pipeline.sampling.fim_transform import COUNTS
from data_pipeline.sampling.padding import pad_batches
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.threads import in_thread
from model.loss import IGNORED

MASK64 = (1 << 64) - 1
CLOSE_SECONDS = 5
Attach = Callable[[int, list[Batch], list[Batch]], list[Batch]]
"""Adds something to the micro-batches of a rank, in a thread of the loader. Takes the index of the
stage, the micro-batches without padding, and those with padding, which it returns."""


@dataclass
class StepData:
    """Data of one step on one rank.

    Attributes:
        micro_batches: The micro-batches of this rank.
        counts: (2 + 2 * sources,) int64: the number of attended keys, summed over all queries and
            layers, the digest of the samples, the targets per source, and the documents per source
            that end in these samples. If a stage has fill in the middle, its counts follow
            (`Batch.fim`, source by source). If a teacher runs on the same batches, the number of
            keys that it attends to comes last. Blank samples do not count. The digest is a sum
            over samples modulo 2^64, so its sum over ranks does not depend on how samples are
            dealt to ranks.
        wait_seconds: Time that training waited for the data.
    """

    micro_batches: list[Batch]
    counts: Tensor
    wait_seconds: float


class Loader:
    """Reads the micro-batches of data-parallel rank `dp_rank` of `dp_size`.

    Args:
        reader: Reader of the corpus.
        plan: Stages of the run.
        dp_rank: Data-parallel rank of this process.
        dp_size: Number of data-parallel ranks.
        micro_batch_tokens: Largest micro-batch in tokens.
        windows: Attention window per layer, for counting the attended keys.
        device: Device of the batches.
        prefetch_steps: Number of steps to read ahead, one thread each; 0 for none.
        teacher_windows: Attention window per layer of a teacher that runs on the same batches.
        attach: Adds what an objective needs to the micro-batches; None if it needs nothing.
    """

    def __init__(
        self,
        reader: BatchReader,
        plan: StagePlan,
        dp_rank: int,
        dp_size: int,
        micro_batch_tokens: int,
        windows: Sequence[int | None],
        device: torch.device,
        prefetch_steps: int = 2,
        teacher_windows: Sequence[int | None] = (),
        attach: Attach | None = None,
    ) -> None:
        self.reader = reader
        self.plan = plan
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.micro_batch_tokens = micro_batch_tokens
        self.windows = Counter(windows)
        self.teacher_windows = Counter(teacher_windows)
        self.attach = attach
        self.device = device
        self.prefetch_steps = prefetch_steps
        self._prefetched: dict[int, Future[StepData]] = {}

    def get(self, step: int) -> StepData:
        """Returns the micro-batches of a step on the device, and prefetches the next steps.

        Raises:
            InputError: A shard is damaged, or remote storage does not respond.
        """
        started = time.perf_counter()
        current = self._prefetched.pop(step, None) or self._start(step)
        wanted = range(step + 1, min(step + 1 + self.prefetch_steps, self.plan.total_steps))
        # After a rewind, steps that were prefetched for the old position are dropped.
        self._prefetched = {
            later: self._prefetched.get(later) or self._start(later) for later in wanted
        }
        data = current.result()
        data.micro_batches = [batch.to(self.device) for batch in data.micro_batches]
        data.wait_seconds = time.perf_counter() - started
        return data

    def close(self) -> None:
        """Waits a few seconds for the reading threads, which do not keep the process alive."""
        wait(self._prefetched.values(), CLOSE_SECONDS)
        self._prefetched = {}

    def _start(self, step: int) -> Future[StepData]:
        return in_thread(lambda: self._read(step))

    def _read(self, step: int) -> StepData:
        stage, sources = self.plan.at(step), len(self.reader.streams)
        deal = deal_step(self.plan, step, self.dp_size, self.micro_batch_tokens)
        share = deal.share(self.dp_rank)
        samples = self.plan.samples_at(step).start + np.arange(share.start, share.stop)
        real = list(self.reader.read_all(stage.index, samples, deal.rows))
        targets = torch.zeros(sources, dtype=torch.int64)
        documents = torch.zeros(sources, dtype=torch.int64)
        for batch in real:
            targets.index_add_(0, batch.sources, (batch.labels != IGNORED).sum(1))
            documents += torch.from_numpy(batch.documents)
        seen = [batch.joined() for batch in real] if stage.joins_documents else real
        keys, teacher_keys = (
            sum(
                layers * attended_keys(batch.cu_seqlens, window)
                for batch in seen
                for window, layers in windows.items()
            )
            for windows in (self.windows, self.teacher_windows)
        )
        digest = sum(map(sample_digest, real)) & MASK64
        signed = digest - (1 << 64) if digest >> 63 else digest
        document_tokens = self.reader.document_tokens[stage.index]
        batches = pad_batches(real, deal, stage.seq_len, sources, document_tokens)
        if stage.joins_documents:
            batches = [batch.joined() for batch in batches]
        if self.attach is not None:
            batches = self.attach(stage.index, seen, batches)
        counts = torch.cat((torch.tensor([keys, signed]), targets, documents))
        if any(fim.sources for fim in self.reader.fim):
            fim = torch.zeros(sources, len(COUNTS), dtype=torch.int64)
            for batch in real:
                if len(batch.fim):
                    fim += torch.from_numpy(batch.fim)
            counts = torch.cat((counts, fim.flatten()))
        if self.teacher_windows:
            counts = torch.cat((counts, torch.tensor([teacher_keys])))
        if self.device.type == "cuda":  # a copy from pageable memory would wait for the device
            batches = [batch.pin_memory() for batch in batches]
            counts = counts.pin_memory()
        return StepData(batches, counts, 0.0)


def attended_keys(cu_seqlens: Tensor, window: int | None) -> int:
    """Returns the exact number of attended keys under a causal mask, summed over all queries."""
    lengths = cu_seqlens.long().diff()
    inside = lengths if window is None else lengths.clamp(max=window)
    beyond = (lengths - inside) * (window or 0)
    return int((inside * (inside + 1) // 2 + beyond).sum())


def sample_digest(batch: Batch) -> int:
    """Returns the sum over the samples of a batch of a 64-bit hash of (sample number, tokens)."""
    total = 0
    for sample, tokens in zip(batch.samples, batch.tokens.numpy(), strict=True):
        salt = int(sample).to_bytes(16, "little")
        hashed = hashlib.blake2b(tokens.tobytes(), digest_size=8, salt=salt)
        total += int.from_bytes(hashed.digest(), "little")
    return total
