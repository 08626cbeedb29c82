"""Configuration of `python -m data_pipeline plan`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from conf.errors import InputError, one_of
from data_pipeline.text.corpus import ENCODERS, CorpusConfig, TokenizerConfig


@dataclass
class PlanDataConfig:
    """Configuration of `plan`.

    corpus, tokenizer, encoder, keep_index: same as for `python -m data_pipeline tokenize`.
    share: fraction of the documents of every source that go through all stages. null takes about
        32 MB of text in all, and at least 1 MB of every source.
    read_bytes: bytes of files to read in order to find the sample, in units drawn from all of every
        source. If the corpus is larger, its part that is not read widens the intervals.
    hours: time in which the jobs are to finish.
    cpus: CPU cores of each job.
    workers: number of processes that read; 0 uses one per core.
    out: JSON file to write, which `python -m launch chain` takes as `data_plan`; null only prints.
    overwrite: replaces `out` if it is such a file.
    """

    corpus: CorpusConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    encoder: str | None = None
    keep_index: bool = True
    share: float | None = None
    read_bytes: int = 20_000_000_000
    hours: float = 6.0
    cpus: int = 32
    workers: int = 0
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.encoder is not None:
            one_of("encoder", self.encoder, ENCODERS)
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"share={self.share}: expected more than 0 and at most 1.")
        for key in ("hours", "cpus", "read_bytes"):
            if getattr(self, key) <= 0:
                raise InputError(f"{key}={getattr(self, key)}: expected more than 0.")
