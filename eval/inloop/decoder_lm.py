"""An lm-eval model on top of a decoder that is sharded over processes.

Every process builds the same requests and runs the same number of forward passes, because each pass
all-gathers weights. There are two ways to form passes:

- On a CPU without compilation, each pass has the shape that lm-eval's `hf` model would use for the
  same requests: the same number of rows of the same length. Both then sum in the same order, and
  the scores equal those of the export bit for bit (fp32, SDPA, same number of threads).
- On a GPU, or compiled, requests are sorted into a few shapes. A process that runs out of requests
  computes padding.
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

MIN_LENGTH = 64
"""Minimum row length; longer rows are padded to powers of two, for few compiled shapes."""
LM_EVAL_BATCH = 16
"""Rows per pass in lm-eval's shapes: the default `batch_size` of `python -m eval lm_eval`."""

Request = tuple[str | None, list[int], list[int]]
"""An lm-eval request: the text, the context tokens, and the continuation tokens to score."""
Pass = tuple[tuple[int, int], list[list[int]]]
"""One forward pass: its shape (rows, length) and the indices of the requests that each row answers.
Rows beyond the end of the list are padding."""


class DecoderLM(TemplateLM):
    """An lm-eval model that calls `forward` on batches of token ids.

    forward: maps tokens (rows, length) to logits (rows, length, vocab); a collective call.
    prefix_id: token prepended to a text without context.
    max_length: context length of the model in tokens.
    batch_tokens: tokens per forward pass, to use only a few shapes; None to use lm-eval's shapes.
    multiple: every row length is a multiple of this.
    group: processes that share the requests; None for this process alone.
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
        self.encoder = Tokenizer.from_file(str(tokenizer))
        self.prefix_id = prefix_id
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.torch_device = device
        self.multiple = multiple
        self.group = group
        self.group_rank = 0 if group is None else dist.get_rank(group)
        self.group_size = 1 if group is None else dist.get_world_size(group)

    @property
    def eot_token_id(self) -> int:
        """Id of the token prepended to a text; lm-eval derives `prefix_token_id` from it."""
        return self.prefix_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the token ids of a text, encoded exactly as by lm-eval's `hf` model."""
        if add_special_tokens is None:
            prefix = self.encoder.id_to_token(self.prefix_id)
            add_special_tokens = not (prefix and string.startswith(prefix))
        return self.encoder.encode(string, add_special_tokens=add_special_tokens).ids

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts, in disjoint windows of `max_length` tokens."""
        owners: list[int] = []
        windows: list[Request] = []
        for index, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, scored in map(make_disjoint_window, parts):
                owners.append(index)
                windows.append((None, context, scored))
        totals = [0.0] * len(requests)
        size = max(1, len(windows)) if self.batch_tokens else LM_EVAL_BATCH
        for start in range(0, len(windows), size):
            scores = self._loglikelihood_tokens(windows[start : start + size])
            for index, (value, _) in zip(owners[start : start + size], scores, strict=True):
                totals[index] += value
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Raises NotImplementedError, as generation needs an exported model."""
        raise NotImplementedError("a sharded decoder cannot generate text; export the model")

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], **_: Any
    ) -> list[tuple[float, bool]]:
        self._check_same_requests(requests)
        rows = [(context + scored)[-self.max_length - 1 :] for _, context, scored in requests]
        scores = torch.zeros(len(rows), 2, dtype=torch.float64, device=self.torch_device)
        passes = (
            self._fixed_shape_passes(rows)
            if self.batch_tokens
            else self._lm_eval_passes(requests, rows)
        )
        for first in range(0, len(passes), self.group_size):
            # In the last round, some processes have no pass left. They run padding in the shape of
            # the first process's pass.
            number = first + self.group_rank
            has_work = number < len(passes)
            shape, answered = passes[number if has_work else first]
            tokens = torch.zeros(shape, dtype=torch.int64)
            for row, indices in enumerate(answered):
                inputs = rows[indices[0]][:-1]
                tokens[row, : len(inputs)] = torch.tensor(inputs)
            logits = self.forward(tokens.to(self.torch_device))
            for row, indices in enumerate(answered if has_work else []):
                for index in indices:
                    count, end = len(requests[index][2]), len(rows[index]) - 1
                    targets = rows[index][end + 1 - count :]
                    scores[index] = _score(logits[row, end - count : end], targets)
        if self.group is not None:
            dist.all_reduce(scores, group=self.group)
        return [(value, bool(greedy)) for value, greedy in scores.tolist()]

    def _fixed_shape_passes(self, rows: list[list[int]]) -> list[Pass]:
        """Groups rows by padded length, so that all processes run the same shape together."""
        assert self.batch_tokens is not None
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_length.setdefault(self._padded_length(len(row) - 1), []).append(index)
        passes: list[Pass] = []
        for length, indices in sorted(by_length.items(), reverse=True):
            batch = max(1, self.batch_tokens // length)
            for start in range(0, math.ceil(len(indices) / self.group_size), batch):
                for rank in range(self.group_size):
                    mine = indices[rank :: self.group_size][start : start + batch]
                    passes.append(((batch, length), [[index] for index in mine]))
        return passes

    def _lm_eval_passes(self, requests: Sequence[Request], rows: list[list[int]]) -> list[Pass]:
        """Forms the same passes as HFLM._loglikelihood_tokens.

        Rows are sorted by length, longest first, taken `LM_EVAL_BATCH` at a time and padded to the
        longest of the batch. Requests that differ only in their last token share a row.
        """
        same: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, scored) in enumerate(requests):
            same.setdefault((*context, *scored[:-1]), []).append(index)
        # HFLM sorts a shared row by the request with the most scored tokens.
        texts = [context + scored for _, context, scored in requests]
        first = [max(shared, key=lambda i: len(requests[i][2])) for shared in same.values()]
        order = sorted(
            zip(first, same.values(), strict=True),
            key=lambda row: (-len(texts[row[0]]), texts[row[0]]),
        )
        passes: list[Pass] = []
        for start in range(0, len(order), LM_EVAL_BATCH):
            batch = [shared for _, shared in order[start : start + LM_EVAL_BATCH]]
            length = max(len(rows[shared[0]]) - 1 for shared in batch)
            length = math.ceil(length / self.multiple) * self.multiple
            passes.append(((len(batch), length), batch))
        return passes

    def _padded_length(self, tokens: int) -> int:
        """Returns the padded length of a row with this many tokens."""
        power = 1 << (max(MIN_LENGTH, tokens) - 1).bit_length()
        return math.ceil(min(power, self.max_length) / self.multiple) * self.multiple

    def _check_same_requests(self, requests: Sequence[Request]) -> None:
        """Raises RuntimeError on all processes if their requests differ, which would deadlock."""
        if self.group is None:
            return
        text = json.dumps([request[1:] for request in requests]).encode()
        digest = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
        extremes = torch.tensor([digest, -digest], device=self.torch_device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        if extremes[0] != -extremes[1]:
            raise RuntimeError("the processes built different lm-eval requests for the same tasks")


def _score(logits: Tensor, targets: list[int]) -> Tensor:
    """Returns the log-likelihood in nats, and 1 if each target is the argmax of its logits, else 0.

    logits: one row per target, (tokens, vocab).
    """
    expected = torch.tensor(targets, device=logits.device)
    log_probs = logits.float().log_softmax(-1)
    value = log_probs.gather(-1, expected[:, None]).sum().double()
    return torch.stack((value, (log_probs.argmax(-1) == expected).all().double()))
