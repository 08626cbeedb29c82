"""What one rank reads for one step, one step ahead of the training.

The order of samples knows no ranks; a rank takes its slice of the global batch (I1).
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from data_pipeline.batches import Batch, BatchReader
from model.loss import IGNORED
from pretrain.stages import StagePlan

MASK64 = (1 << 64) - 1


@dataclass
class StepData:
    """counts: (3,) int64 of this rank: targets, keys seen by all queries, digest of the samples.

    The digest is a sum modulo 2^64 over samples, so that its sum over ranks is the same for every
    way to deal the samples out.
    """

    micro_batches: list[Batch]
    counts: Tensor
    wait_seconds: float


class Loader:
    """Reads the micro-batches of data-parallel rank `dp_rank` of `dp_size`."""

    def __init__(
        self,
        reader: BatchReader,
        plan: StagePlan,
        dp_rank: int,
        dp_size: int,
        micro_batch_tokens: int,
        window: int | None,
        device: torch.device,
    ) -> None:
        self.reader = reader
        self.plan = plan
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.micro_batch_tokens = micro_batch_tokens
        self.window = window
        self.device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[StepData]] | None = None

    def get(self, step: int) -> StepData:
        """The micro-batches of `step` on the device; starts reading those of the next."""
        started = time.perf_counter()
        if self._ahead is not None and self._ahead[0] == step:
            data = self._ahead[1].result()
        else:
            data = self._read(step)
        self._ahead = None
        if step + 1 < self.plan.total_steps:
            self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        for batch in data.micro_batches:
            batch.tokens = batch.tokens.to(self.device, non_blocking=True)
            batch.labels = batch.labels.to(self.device, non_blocking=True)
            batch.cu_seqlens = batch.cu_seqlens.to(self.device, non_blocking=True)
        data.wait_seconds = time.perf_counter() - started
        return data

    def close(self) -> None:
        """Stops the reading thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> StepData:
        stage = self.plan.at(step)
        first = (step - stage.first_step) * stage.samples_per_step
        share = stage.samples_per_step // self.dp_size
        samples = first + self.dp_rank * share + np.arange(share)
        micro = self.micro_batch_tokens // stage.seq_len
        batches = [
            self.reader.read(stage.index, samples[at : at + micro]) for at in range(0, share, micro)
        ]
        targets = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
        keys = sum(keys_seen(batch.cu_seqlens, self.window) for batch in batches)
        digest = sum(map(digest_of_samples, batches)) & MASK64
        signed = digest - (1 << 64) if digest >> 63 else digest
        if self.device.type == "cuda":
            for batch in batches:
                batch.tokens, batch.labels = batch.tokens.pin_memory(), batch.labels.pin_memory()
                batch.cu_seqlens = batch.cu_seqlens.pin_memory()
        return StepData(batches, torch.tensor([targets, keys, signed]), 0.0)


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


def check_batches(
    plan: StagePlan, micro_batch_tokens: int, dp_size: int, tp: int, longest: int
) -> None:
    """Raises InputError where a stage's batch cannot be dealt out over the layout.

    longest: positions that the model has.
    """
    tokens = plan.global_batch_tokens
    for stage in plan.stages:
        key = f"recipe.stages.{stage.name}.seq_len={stage.seq_len}"
        if stage.seq_len > longest:
            raise InputError(f"{key} is above model.max_seq_len={longest}.")
        if stage.seq_len % tp:
            raise InputError(f"{key} is not divisible by parallel.tp={tp}.")
        if micro_batch_tokens % stage.seq_len:
            raise InputError(
                f"parallel.micro_batch_tokens={micro_batch_tokens} is not a multiple of {key}."
            )
    if tokens % (micro_batch_tokens * dp_size):
        raise InputError(
            f"recipe.global_batch_tokens={tokens} is not divisible by "
            f"parallel.micro_batch_tokens={micro_batch_tokens} x {dp_size} data-parallel ranks = "
            f"{micro_batch_tokens * dp_size}: change one of them."
        )
