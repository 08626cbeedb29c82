"""Requests shared over processes, and their scores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from eval.inloop.decoder_lm import DecoderLM
from tests.corpora import VOCAB_SIZE, byte_tokenizer

CPU = torch.device("cpu")
TABLE = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


def bigram(shapes: list[tuple[int, ...]]):
    """A model whose next token depends only on the current one, and that records its calls."""

    def forward(tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return TABLE[tokens]

    return forward


def by_hand(context: list[int], scored: list[int]) -> tuple[float, bool]:
    chances = TABLE.log_softmax(-1)
    row = context + scored
    before = row[len(context) - 1 : -1]
    value = sum(float(chances[a, b]) for a, b in zip(before, scored, strict=True))
    greedy = all(int(TABLE[a].argmax()) == b for a, b in zip(before, scored, strict=True))
    return value, greedy


def requests(count: int) -> list[tuple[str | None, list[int], list[int]]]:
    """Returns requests of many lengths; greedy decoding produces every third continuation."""
    draw = torch.Generator().manual_seed(1)
    made: list[tuple[str | None, list[int], list[int]]] = []
    for number in range(count):
        size = int(torch.randint(2, 150, (1,), generator=draw))
        context = torch.randint(3, VOCAB_SIZE, (size,), generator=draw).tolist()
        scored = torch.randint(3, VOCAB_SIZE, (1 + number % 4,), generator=draw).tolist()
        if number % 3 == 0:
            scored = [int(TABLE[context[-1]].argmax())]
        made.append((None, context, scored))
    return made


def make(path, shapes, group=None, batch_tokens: int | None = 256) -> DecoderLM:
    tokenizer = path / f"tokenizer{0 if group is None else dist.get_rank()}.json"
    byte_tokenizer().save(str(tokenizer))
    return DecoderLM(bigram(shapes), tokenizer, 1, 160, batch_tokens, CPU, 3, group)


# Few shapes, multiples of 3, and no more tokens than asked for; or sixteen rows a pass, the longest
# first, requests that differ in their last token alone being one row.
@pytest.mark.parametrize(
    ("batch_tokens", "expected_shapes"),
    [(256, {(3, 66), (1, 129), (1, 162)}), (None, {(16, 150), (8, 48)})],
)
def test_batched_scores_equal_those_of_single_requests(tmp_path, batch_tokens, expected_shapes):
    shapes: list[tuple[int, ...]] = []
    asked = requests(23)
    asked += [(None, asked[0][1], [*asked[0][2][:-1], last]) for last in (5, 6)]
    asked += [(None, [7, 8], [9, 10, 11]), (None, [7, 8, 9], [10, 12])]
    found = make(tmp_path, shapes, batch_tokens=batch_tokens)._loglikelihood_tokens(asked)
    for (value, greedy), (_, context, scored) in zip(found, asked, strict=True):
        expected = by_hand(context, scored)
        assert (value, greedy) == (pytest.approx(expected[0], rel=1e-5), expected[1])
    assert sum(greedy for _, greedy in found) >= 8
    assert set(shapes) == expected_shapes


@pytest.mark.parametrize("batch_tokens", [256, None])
def test_long_texts_are_scored_in_windows(tmp_path, batch_tokens):
    class Request:
        args = ("a sentence of some length, " * 20,)

    model = make(tmp_path, [], batch_tokens=batch_tokens)
    ids = model.tok_encode(Request.args[0])
    assert len(ids) > 3 * 160
    (value,) = model.loglikelihood_rolling([Request])
    pieces = [ids[start : start + 160] for start in range(0, len(ids), 160)]
    before = [1, *(piece[-1] for piece in pieces[:-1])]
    expected = sum(by_hand([b], piece)[0] for b, piece in zip(before, pieces, strict=True))
    assert value == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(value)


def score_share(rank: int, ranks: int, folder) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    shapes: list[tuple[int, ...]] = []
    model = make(folder, shapes, dist.group.WORLD)
    found, shapes_of_few = model._loglikelihood_tokens(requests(23)), list(shapes)
    model.batch_tokens = None
    both = (found, model._loglikelihood_tokens(requests(23)))
    torch.save([both, shapes_of_few], folder / str(rank))
    with pytest.raises(RuntimeError, match="different lm-eval requests"):
        model._loglikelihood_tokens(requests(23)[rank:])
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_with_fewer_requests_run_as_many_passes(tmp_path):
    """23 requests over 3 processes; one that sees others than the rest ends all with an error."""
    mp.spawn(score_share, (3, tmp_path), nprocs=3)
    model = make(tmp_path, [])
    alone = model._loglikelihood_tokens(requests(23))
    model.batch_tokens = None
    both = (alone, model._loglikelihood_tokens(requests(23)))
    shares = [torch.load(tmp_path / str(rank)) for rank in range(3)]
    for found, shapes in shares:
        assert found == both  # of the two passes of lm-eval's kind the third process has none
        assert shapes == shares[0][1]
