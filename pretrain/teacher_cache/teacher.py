"""The teacher of a run that reads its answers from caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch
from data_pipeline.store.manifest import Manifest
from model.network import Decoder
from pretrain.objectives import Setting
from pretrain.objectives.distill.answers import TeacherAnswers
from pretrain.teacher_cache.coverage import KEY, Contexts, check_coverage
from pretrain.teacher_cache.manifest import CacheManifest, load_cache
from pretrain.teacher_cache.reader import AnswerReader
from pretrain.teacher_cache.records import RecordForm, decode


class CachedTeacher:
    """Answers batches from the records that the loader has attached to them.

    Args:
        caches: The caches by folder.
        top_k: Number of tokens in an answer, at most that of the caches.
    """

    def __init__(self, caches: Mapping[str, CacheManifest], top_k: int) -> None:
        self.cache, self.top_k = next(iter(caches.values())), top_k
        self.identity: Mapping[str, Any] = {**self.cache.teacher, "caches": list(caches)}

    def answers(self, student: Decoder, batch: Batch) -> TeacherAnswers:
        """Returns the answers to a batch for the positions of this process."""
        assert batch.answers is not None, "the loader of the run reads no cache"
        seq_len = batch.tokens.shape[1]
        form = RecordForm(seq_len, self.cache.top_k, self.cache.vocab_size)
        positions = student.positions(seq_len, batch.answers.device)
        ids, log_probabilities, log_rest = decode(form, batch.answers.index_select(1, positions))
        if self.top_k < form.top_k:
            others = log_probabilities[..., self.top_k :].logsumexp(-1)
            log_rest = torch.logaddexp(log_rest, others)
            ids, log_probabilities = ids[..., : self.top_k], log_probabilities[..., : self.top_k]
        return TeacherAnswers(ids, log_probabilities, log_rest)


def open_caches(folders: Sequence[str], top_k: int, corpus: Manifest) -> dict[str, CacheManifest]:
    """Returns the caches of a run by folder, after checks that need no plan.

    Args:
        folders: The folders.
        top_k: Number of tokens in an answer that the run learns from.
        corpus: The corpus of the run.

    Raises:
        InputError: A cache is not complete, or the caches do not fit the corpus or each other.
    """
    caches = {folder: load_cache(folder, KEY) for folder in folders}
    first = next(iter(caches.values()))
    for folder, cache in caches.items():
        if cache.tokenizer != corpus.tokenizer["sha256"]:
            raise InputError(
                f"{KEY}={folder}: its answers are ids of another tokenizer (fingerprint "
                f"{cache.tokenizer[:12]}) than that of the corpus "
                f"({str(corpus.tokenizer['sha256'])[:12]}). Teach with this corpus."
            )
        if top_k > cache.top_k:
            raise InputError(
                f"objective.top_k={top_k}: {KEY}={folder} has {cache.top_k} tokens per position. "
                f"Set objective.top_k={cache.top_k} or less, or teach again with top_k={top_k}."
            )
        for name, was, now in (
            ("teacher", first.teacher["fingerprint"][:12], cache.teacher["fingerprint"][:12]),
            ("precision", first.precision, cache.precision),
            ("top_k", first.top_k, cache.top_k),
        ):
            if was != now:
                raise InputError(
                    f"{KEY}={folder}: its {name} is {now}, but that of {folders[0]} is {was}. Give "
                    "caches of the same teacher and settings."
                )
    return caches


def read_answers(caches: Mapping[str, CacheManifest], setting: Setting) -> AnswerReader:
    """Returns a reader of the answers to the steps that are left of a run.

    Raises InputError if the caches do not have all of them.
    """
    config, plan = setting.config, setting.plan
    tokenizer = setting.manifest.tokenizer["sha256"]
    run = Contexts(plan, setting.order, config.recipe, setting.data, tokenizer)
    end = plan.total_steps if config.stop_after is None else config.stop_after
    check_coverage(caches, run, range(setting.step, min(end, plan.total_steps)))
    return AnswerReader({str(Path(folder)): cache for folder, cache in caches.items()}, run)
