"""`python -m eval report`: writes one HTML page about a run, which opens offline.

The page shows the run and its corpus and, if given, scores from `lm_eval`, the loss from
`perplexity`, tuned models and samples from `generate`. The command also works
for a run in progress.
"""

from __future__ import annotations

from pathlib import Path

from conf.output_kinds import PAGE
from conf.outputs import Output
from eval.report.config import ReportConfig
from pages.page import render

TEMPLATE = Path(__file__).parent / "templates" / "report.html"


def report(config: ReportConfig) -> None:
    """Writes the page, and the model card if `card` is given.

    Raises:
        InputError: a given file or folder is missing or of the wrong kind.
    """
    from eval.report.card import card_output, write_card
    from eval.report.content import page_content
    from eval.scores.results import load_results

    inputs = [config.run, config.corpus, config.results, config.perplexity]
    more = [*config.others.values(), *config.tuned.values(), *config.samples.values()]
    output = Output(config.out, PAGE, config.overwrite, [*inputs, *more])
    output.check()
    if config.card is not None:
        card_output(config.card).check_foreign()
    content = page_content(config)
    if config.card is not None:
        results = load_results(Path(config.results)) if config.results else None
        write_card(Path(config.card), content, results)
    output.write(render(TEMPLATE, content))
    print(f"{config.out}: {output.path.stat().st_size / 1024:.0f} kB")
