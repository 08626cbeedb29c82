"""What one rank reads for one step, some steps ahead of the training.

The order of samples knows no ranks; a rank takes its slice of the global batch (I1), filled up with
blank samples where the batch is not a multiple of the ranks. The order of the future is known, so
reading ahead is a list of steps.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.sampling.batches import Batch, BatchReader, pad_batches
from data_pipeline.sampling.dealing import deal_step
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.threads import in_thread
from model.loss import IGNORED

MASK64 = (1 << 64) - 1
CLOSE_SECONDS = 5


@dataclass
class StepData:
    """counts: (2 + 2 * sources,) int64 of this rank: keys seen by all queries in all layers, digest
    of the samples, then of each source the targets and the documents that ended in them. Blank
    samples count nowhere.

    The digest is a sum modulo 2^64 over samples, so that its sum over ranks is the same for every
    way to deal the samples out.
    """

    micro_batches: list[Batch]
    counts: Tensor
    wait_seconds: float


class Loader:
    """Reads the micro-batches of data-parallel rank `dp_rank` of `dp_size`.

    prefetch_steps: steps that are read, by as many threads, while others train; 0 for none.
    windows: of the layers, from which the keys that are seen are counted.
    micro_batch_tokens: of a micro-batch at most.
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
    ) -> None:
        self.reader = reader
        self.plan = plan
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.micro_batch_tokens = micro_batch_tokens
        self.windows = Counter(windows)
        self.device = device
        self.prefetch_steps = prefetch_steps
        self._ahead: dict[int, Future[StepData]] = {}

    def get(self, step: int) -> StepData:
        """The micro-batches of `step` on the device; keeps those of the next steps coming.

        Raises InputError where a shard is damaged or remote storage does not answer.
        """
        started = time.perf_counter()
        first = self._ahead.pop(step, None) or self._start(step)
        wanted = range(step + 1, min(step + 1 + self.prefetch_steps, self.plan.total_steps))
        # Where the run went somewhere else, what was read for the way before is dropped.
        self._ahead = {coming: self._ahead.get(coming) or self._start(coming) for coming in wanted}
        data = first.result()
        for batch in data.micro_batches:
            batch.tokens = batch.tokens.to(self.device, non_blocking=True)
            batch.labels = batch.labels.to(self.device, non_blocking=True)
            batch.sources = batch.sources.to(self.device, non_blocking=True)
            batch.cu_seqlens = batch.cu_seqlens.to(self.device, non_blocking=True)
        data.wait_seconds = time.perf_counter() - started
        return data

    def close(self) -> None:
        """Gives threads that still read a moment; the process does not wait for slow storage."""
        wait(self._ahead.values(), CLOSE_SECONDS)
        self._ahead = {}

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
        keys = sum(
            layers * keys_seen(batch.cu_seqlens, window)
            for batch in real
            for window, layers in self.windows.items()
        )
        digest = sum(map(digest_of_samples, real)) & MASK64
        signed = digest - (1 << 64) if digest >> 63 else digest
        batches = pad_batches(real, deal, stage.seq_len, sources)
        if self.device.type == "cuda":
            for batch in batches:
                batch.tokens, batch.labels = batch.tokens.pin_memory(), batch.labels.pin_memory()
                batch.cu_seqlens = batch.cu_seqlens.pin_memory()
                batch.sources = batch.sources.pin_memory()
        counts = torch.cat((torch.tensor([keys, signed]), targets, documents))
        return StepData(batches, counts, 0.0)


def keys_seen(cu_seqlens: Tensor, window: int | None) -> int:
    """Keys that all queries of the documents attend to together, causal and window exact."""
    lengths = cu_seqlens.long().diff()
    inside = lengths if window is None else lengths.clamp(max=window)
    beyond = (lengths - inside) * (window or 0)
    return int((inside * (inside + 1) // 2 + beyond).sum())


def digest_of_samples(batch: Batch) -> int:
    """Sum over the samples of a 64-bit hash of (sample number, its tokens)."""
    total = 0
    for sample, tokens in zip(batch.samples, batch.tokens.numpy(), strict=True):
        salt = int(sample).to_bytes(16, "little")
        hashed = hashlib.blake2b(tokens.tobytes(), digest_size=8, salt=salt)
        total += int.from_bytes(hashed.digest(), "little")
    return total
