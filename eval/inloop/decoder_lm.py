"""lm-eval's tasks on a decoder that is spread over processes, in place and with no export.

Every process builds the same requests and runs the same number of forward passes, since each pass
gathers weights from all of them. On a CPU a pass is one that lm-eval's `hf` model would make of the
same requests: as many rows, of the same length, so that both sum in the same order and the scores
are those of the export to the bit (fp32, SDPA, one thread count). On a GPU, or compiled, requests
are sorted into a few shapes, and where they do not come out even a process fills up with padding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch import Tensor

SHORTEST = 64
"""Least length of a row; longer ones are powers of two, so that compiling sees few shapes."""
ROWS = 16
"""Of a pass as lm-eval makes it: `batch_size` of `python -m eval lm_eval`."""

Scored = tuple[str | None, list[int], list[int]]
"""What lm-eval asks for: the text, tokens of the context, tokens that are scored after it."""
Pass = tuple[tuple[int, int], list[list[int]]]
"""A forward pass: its shape (rows, length), and the numbers of the requests that each row answers;
rows without are padding."""


class DecoderLM(TemplateLM):
    """What lm-eval wants of a model.

    forward: tokens (rows, length) -> logits (rows, length, vocab); every process calls it.
    prefix_id: stands before a text that has no context. max_length: tokens that the model sees.
    batch_tokens: of one forward pass of a few shapes; None for passes as lm-eval makes them.
    multiple: what every length must be a multiple of.
    group: the processes that share the requests; None for this process alone.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        tokenizer: Path,
        prefix_id: int,
        max_length: int,
        batch_tokens: int | None,
        device: torch.device,
        multiple: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.forward = forward
        self.text = Tokenizer.from_file(str(tokenizer))
        self.prefix_id = prefix_id
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.place = device
        self.multiple = multiple
        self.group = group
        self.share = 0 if group is None else dist.get_rank(group)
        self.shares = 1 if group is None else dist.get_world_size(group)

    @property
    def eot_token_id(self) -> int:
        """Stands before a text, as `prefix_token_id`."""
        return self.prefix_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, as lm-eval's `hf` model makes them."""
        if add_special_tokens is None:
            prefix = self.text.id_to_token(self.prefix_id)
            add_special_tokens = not (prefix and string.startswith(prefix))
        return self.text.encode(string, add_special_tokens=add_special_tokens).ids

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of `max_length` that do not overlap."""
        owner: list[int] = []
        windows: list[Scored] = []
        for number, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, scored in map(make_disjoint_window, parts):
                owner.append(number)
                windows.append((None, context, scored))
        totals = [0.0] * len(requests)
        size = max(1, len(windows)) if self.batch_tokens else ROWS
        for start in range(0, len(windows), size):
            found = self._loglikelihood_tokens(windows[start : start + size])
            for number, (value, _) in zip(owner[start : start + size], found, strict=True):
                totals[number] += value
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not here: `eval lm_eval` on an export writes text."""
        raise NotImplementedError("tasks that write text are scored on an export only")

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], **_: Any
    ) -> list[tuple[float, bool]]:
        self._agree(requests)
        rows = [(context + scored)[-self.max_length - 1 :] for _, context, scored in requests]
        found = torch.zeros(len(rows), 2, dtype=torch.float64, device=self.place)
        passes = self._few_shapes(rows) if self.batch_tokens else self._as_lm_eval(requests, rows)
        for at in range(0, len(passes), self.shares):
            # The last processes may have nothing left: they take part with the first one's shape.
            mine = at + self.share if at + self.share < len(passes) else None
            shape, alike = passes[at if mine is None else mine]
            tokens = torch.zeros(shape, dtype=torch.int64)
            for place, numbers in enumerate(alike):
                inputs = rows[numbers[0]][:-1]
                tokens[place, : len(inputs)] = torch.tensor(inputs)
            logits = self.forward(tokens.to(self.place))
            for place, numbers in enumerate(alike if mine is not None else []):
                for number in numbers:
                    count, end = len(requests[number][2]), len(rows[number]) - 1
                    targets = rows[number][end + 1 - count :]
                    found[number] = _score(logits[place, end - count : end], targets)
        if self.group is not None:
            dist.all_reduce(found, group=self.group)
        return [(value, bool(greedy)) for value, greedy in found.tolist()]

    def _few_shapes(self, rows: list[list[int]]) -> list[Pass]:
        """Rows by their length's power of two, those of one length on all processes at once."""
        assert self.batch_tokens is not None
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            by_length.setdefault(self._length(len(row) - 1), []).append(number)
        passes: list[Pass] = []
        for length, numbers in sorted(by_length.items(), reverse=True):
            batch = max(1, self.batch_tokens // length)
            for start in range(0, math.ceil(len(numbers) / self.shares), batch):
                for share in range(self.shares):
                    mine = numbers[share :: self.shares][start : start + batch]
                    passes.append(((batch, length), [[number] for number in mine]))
        return passes

    def _as_lm_eval(self, requests: Sequence[Scored], rows: list[list[int]]) -> list[Pass]:
        """The longest first, `ROWS` at a time, padded to the longest of them; requests that differ
        in their last token alone are one row (HFLM._loglikelihood_tokens)."""
        same: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, scored) in enumerate(requests):
            same.setdefault((*context, *scored[:-1]), []).append(number)
        # Of those that are one row it sorts by the one that scores most tokens.
        texts = {number: context + scored for number, (_, context, scored) in enumerate(requests)}
        first = [max(alike, key=lambda number: len(requests[number][2])) for alike in same.values()]
        order = sorted(
            zip(first, same.values(), strict=True),
            key=lambda row: (-len(texts[row[0]]), texts[row[0]]),
        )
        passes: list[Pass] = []
        for start in range(0, len(order), ROWS):
            alike = [numbers for _, numbers in order[start : start + ROWS]]
            length = max(len(rows[numbers[0]]) - 1 for numbers in alike)
            length = math.ceil(length / self.multiple) * self.multiple
            passes.append(((len(alike), length), alike))
        return passes

    def _length(self, tokens: int) -> int:
        """Of the row that so many tokens are put into."""
        power = 1 << (max(SHORTEST, tokens) - 1).bit_length()
        return math.ceil(min(power, self.max_length) / self.multiple) * self.multiple

    def _agree(self, requests: Sequence[Scored]) -> None:
        """Raises on every process where they are about to run different requests, which would
        wait for each other for ever."""
        if self.group is None:
            return
        text = json.dumps([request[1:] for request in requests]).encode()
        digest = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
        both = torch.tensor([digest, -digest], device=self.place)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        if both[0] != -both[1]:
            raise RuntimeError("the processes made different lm-eval requests of the same tasks")


def _score(logits: Tensor, scored: list[int]) -> Tensor:
    """(log-likelihood in nats, whether each token is the likeliest); logits (tokens, vocab)."""
    targets = torch.tensor(scored, device=logits.device)
    chances = logits.float().log_softmax(-1)
    value = chances.gather(-1, targets[:, None]).sum().double()
    return torch.stack((value, (chances.argmax(-1) == targets).all().double()))
