"""A teacher that runs next to the student, on the same batches and sharded by the same layout."""

from __future__ import annotations

from collections.abc import Collection

import torch

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from model.logits import TopK
from model.network import Decoder
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from pretrain.objectives.distill.answers import TeacherAnswers
from pretrain.objectives.distill.sources import NetworkSource
from pretrain.parallel.frozen import build_frozen
from pretrain.parallel.mesh import Layout


class OnlineTeacher:
    """A frozen network that answers batches.

    Args:
        source: The network on disk.
        top_k: Number of tokens in an answer, and the ids to choose from.
        layout: The device mesh of the student.
        config: The parallel settings of the student.
        precision: Precision of the run.
        device: The device of this process.
        windows: Windows of the student's layers; None if there is no student.
    """

    def __init__(
        self,
        source: NetworkSource,
        top_k: TopK,
        layout: Layout,
        config: ParallelConfig,
        precision: str,
        device: torch.device,
        windows: Collection[int | None] | None = None,
    ) -> None:
        self.identity = source.identity()
        self.top_k = top_k
        self.model = build_frozen(
            source.network,
            layout,
            config,
            precision,
            device,
            lambda name, shape: source.read(name),
            windows,
        )

    @torch.no_grad()
    def answers(self, student: Decoder, batch: Batch) -> TeacherAnswers:
        """Returns the answers to a batch, computed with the student's attention backend."""
        return self.answer(batch, student.attention)

    @torch.no_grad()
    def answer(self, batch: Batch, attention: str) -> TeacherAnswers:
        """Returns the answers to a batch, computed with a backend of `model.attention`."""
        self.model.attention = attention
        found = self.model(
            batch.tokens,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            top_k=self.top_k,
        )
        return TeacherAnswers(*found)


def check_network(
    network: ModelConfig, parallel: ParallelConfig, plan: StagePlan, manifest: Manifest
) -> None:
    """Raises InputError if a network cannot answer the batches of a run in its layout.

    Args:
        network: The shape of the teacher.
        parallel: The layout of the run.
        plan: The stages of the run.
        manifest: The corpus.
    """
    longest = max(plan.stages, key=lambda stage: stage.seq_len)
    if longest.seq_len > network.max_seq_len:
        raise InputError(
            f"it has {network.max_seq_len} positions, too few for "
            f"recipe.stages.{longest.name}.seq_len={longest.seq_len}. Use shorter sequences, or "
            "another teacher."
        )
    if network.vocab_size < manifest.vocab_size:
        raise InputError(
            f"it has {network.vocab_size} ids, but the corpus {manifest.vocab_size}. Give a "
            "teacher with the tokenizer of the corpus."
        )
    others = parallel.dp_replicate * parallel.cp * parallel.tp
    shards = 1 if parallel.dp_shard == -1 else parallel.dp_shard
    try:
        check_layout(parallel, network, others * shards)
    except InputError as error:
        raise InputError(f"of this network, {error}") from None
