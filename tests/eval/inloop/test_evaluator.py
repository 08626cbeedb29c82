"""Loss and bits per byte during training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from data_pipeline.sampling.batches import IGNORED, Batch
from eval.inloop.evaluator import Score, evaluate

VOCAB = 8
CPU = torch.device("cpu")


class Bigram(nn.Module):
    """A model whose next token depends only on the current one."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        cu_seqlens: Tensor,
        id_mask: Tensor,
        max_seqlen: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        logits = self.table[tokens].flatten(0, 1)
        losses = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
        return losses.sum(), losses[id_mask[labels.flatten().clamp(min=0)]].sum()


def make_batches(count: int, seed: int = 0) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(count):
        ids = torch.randint(0, VOCAB, (2, 17), generator=draw)
        labels = ids[:, 1:].clone()
        labels[0, number] = IGNORED
        cu_seqlens = torch.tensor([0, number + 1, 16, 32, 32], dtype=torch.int32)
        batches.append(Batch(ids[:, :-1], labels, cu_seqlens, np.arange(2)))
    return batches


def table(seed: int = 0) -> Tensor:
    return torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


def test_a_uniform_model_scores_the_logarithm_of_its_vocabulary():
    score = evaluate(
        Bigram(torch.zeros(VOCAB, VOCAB)),
        make_batches(3),
        torch.ones(VOCAB, dtype=torch.int64),
        CPU,
    )
    assert score.loss == pytest.approx(math.log(VOCAB))
    assert score.bits_per_byte == pytest.approx(3)
    assert score.tokens == 3 * 31


def test_it_equals_the_sum_over_single_targets():
    batches = make_batches(4)
    sizes = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    log_probs = table().log_softmax(-1)
    losses, of_text, text = [], [], 0
    for batch in batches:
        pairs = zip(batch.tokens.flatten(), batch.labels.flatten(), strict=True)
        for token, label in pairs:
            if label != IGNORED:
                losses.append(-float(log_probs[token, label]))
                if sizes[label]:  # id 0 stands for no text, as the end of a document
                    of_text.append(losses[-1])
                    text += int(sizes[label])
    score = evaluate(Bigram(table()), batches, sizes, CPU)
    assert score.loss == pytest.approx(sum(losses) / len(losses))
    assert score.bits_per_byte == pytest.approx(sum(of_text) / math.log(2) / text)
    assert len(of_text) < len(losses)


def test_no_graph_is_kept():
    weights = table().requires_grad_()

    class Watched(Bigram):
        def forward(self, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
            losses = super().forward(*args, **more)
            assert not any(loss.requires_grad for loss in losses)
            return losses

    evaluate(Watched(weights), make_batches(1), torch.ones(VOCAB, dtype=torch.int64), CPU)


def score_share(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    sizes = torch.arange(VOCAB)
    score = evaluate(Bigram(table()), make_batches(4)[rank::ranks], sizes, CPU, dist.group.WORLD)
    torch.save([score.loss, score.bits_per_byte, score.tokens], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path):
    mp.spawn(score_share, (2, str(tmp_path)), nprocs=2)
    alone = evaluate(Bigram(table()), make_batches(4), torch.arange(VOCAB), CPU)
    for rank in range(2):
        together = Score(*torch.load(tmp_path / str(rank)))
        assert together.tokens == alone.tokens
        assert together.loss == pytest.approx(alone.loss, rel=1e-6)
        assert together.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-6)
