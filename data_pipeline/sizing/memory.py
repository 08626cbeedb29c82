"""Computes from a forecast how much memory the processes of a preparation need."""

from __future__ import annotations

from data_pipeline.dedup import matching
from data_pipeline.dedup.components import BYTES_PER_LINK
from data_pipeline.sizing.forecast import Forecast

COPIES_OF_TEXT = 4
"""Memory of a process that encodes, in multiples of the text of a shard."""
COPIES_OF_KEYS = 4
"""Memory of a process that scans, in multiples of the signatures of a unit."""
BYTES_PER_ROW = 250
"""Memory of a process that scans, per document of a unit, without signatures."""
SPREAD = 1.1
"""Factor for what the same work takes more in another process, by its allocator and its imports."""


def memory_of(forecast: Forecast, start_bytes: int) -> dict[str, float]:
    """Returns an upper bound of the memory of a process in each phase.

    It is what the trial took, with its sample, and in addition what larger units and more text
    need. `start_bytes` is the memory of a process that has not begun its first task.
    """
    corpus, dedup = forecast.config.corpus, forecast.config.corpus.cleaning.dedup
    trial, plan, scanned = forecast.trial, forecast.dedup, forecast.scanned
    texts = forecast.raw_by_unit()
    largest = max(texts, default=0.0)
    longest = max((int(one.stratum.sizes.max(initial=0)) for one in trial.drawn), default=0)
    documents = forecast.documents.value * largest / max(1.0, sum(texts))
    found = {}
    for load in forecast.loads():
        needed = 0.0
        if load.name == "scan":
            keys = 8 * dedup.buckets * COPIES_OF_KEYS * dedup.minhash
            needed = documents * (BYTES_PER_ROW + keys)
        elif load.name == "match" and plan is not None:
            parts = max(1, plan.exact_parts, plan.url_parts)
            digest = matching.BYTES_PER_DIGEST * scanned / parts
            key = matching.BYTES_PER_KEY * scanned / max(1, plan.near_parts)
            needed = max(digest * bool(plan.digest_kinds), key * bool(plan.buckets))
        elif load.name == "merge" and plan is not None:
            links = min(scanned * max(1, plan.buckets), plan.links_at_once)
            needed = min(dedup.task_bytes, 2 * BYTES_PER_LINK * links)
        elif load.name == "prepare":
            grown = max(0, trial.peaks["prepare"] - trial.base_bytes)
            factor = forecast.trained_bytes() / max(1, trial.trained_bytes)
            needed = grown * max(0.0, factor - 1)
        elif load.name == "encode":
            needed = COPIES_OF_TEXT * min(largest, corpus.shard_bytes + longest)
        found[load.name] = SPREAD * (max(start_bytes, trial.peaks[load.name]) + needed)
    return found
