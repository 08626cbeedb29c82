"""Configuration of `python -m eval report`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import InputError


@dataclass
class ReportConfig:
    """Configuration of `report`.

    Parts of the page whose setting is null or empty are omitted.

    run: a run folder.
    out: the HTML page to write.
    corpus: the corpus folder that the run was trained on, null for the one that it recorded.
    others: further run folders to compare the run with, keyed by the names on the page, in addition
        to the runs that it descends from and its branches.
    results: result file written by lm_eval.
    perplexity: JSON file written by perplexity.
    tuned: folders made by finetune, in the order of tuning, keyed by the names on the page.
    samples: jsonl files written by generate, keyed by the names on the page; if empty, the files in
        the run's samples/ folder.
    max_samples: maximum number of prompts to show.
    card: an exported folder whose README.md becomes a model card with the same content, null for
        none.
    overwrite: replaces `out` if it is a page that Headwater made.
    """

    run: str = MISSING
    out: str = MISSING
    corpus: str | None = None
    others: dict[str, str] = field(default_factory=dict)
    results: str | None = None
    perplexity: str | None = None
    tuned: dict[str, str] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    max_samples: int = 6
    card: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.max_samples < 0:
            raise InputError(f"max_samples={self.max_samples}: expected 0 or more.")
