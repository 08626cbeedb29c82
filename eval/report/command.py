"""`python -m eval report`: one HTML page about a run that opens offline.

It reads the run folder and what else it is given: the corpus, scores of `lm_eval`, the check of
`perplexity`, a tuned model's folder, samples of `generate`. A run in progress has a page too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from conf.errors import InputError
from conf.output_kinds import CARD, PAGE
from conf.outputs import Output
from pages.page import render

TEMPLATE = Path(__file__).parent / "templates" / "report.html"


@dataclass
class ReportConfig:
    """run: a run folder; out: the page.

    corpus: the folder that it was trained on, null for what its config says.
    others: further run folders, by the names that the page shows: it sets them side by side.
    results: scores from lm_eval; perplexity: the JSON file of that command; tuned: folders that
        finetune made, in the order in which they were tuned, and samples: jsonl files of generate,
        both by the names that the page shows. Null or empty leaves that part out, but for
        samples: then the files in samples/ of the run folder are shown.
    max_samples: prompts to show.
    overwrite: replaces `out`, if it is a page that Headwater made.
    card: an exported folder whose README.md becomes a model card with the same content, null for
        none.
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
            raise InputError(f"max_samples={self.max_samples}, expected 0 or more.")


def report(config: ReportConfig) -> None:
    """Writes the page, and the card.

    Raises:
        InputError: a file or folder that is named is missing or not of its kind.
    """
    read = [config.run, config.corpus, config.results, config.perplexity]
    more = [*config.others.values(), *config.tuned.values(), *config.samples.values()]
    output = Output(config.out, PAGE, config.overwrite, [*read, *more])
    output.check()
    if config.card is not None:
        card_of(config.card).check_foreign()

    from eval.report.card import write_card
    from eval.report.page import content
    from eval.scores.results import load_results

    found = content(config)
    if config.card is not None:
        write_card(
            Path(config.card), found, load_results(Path(config.results)) if config.results else None
        )
    output.write(render(TEMPLATE, found))
    print(f"{config.out}: {output.path.stat().st_size / 1024:.0f} kB")


def card_of(folder: str | Path) -> Output:
    """Returns the model card of an exported folder: `card=` asks for it to be replaced."""
    return Output(Path(folder) / "README.md", CARD, overwrite=True, key="card")
