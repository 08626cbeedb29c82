"""`python -m data_pipeline inspect`: writes a self-contained HTML page about a corpus.

The page shows what the corpus contains, what cleaning dropped, what a recipe takes from it, and
samples of its text, so that the data can be inspected before a model is trained on it.
"""

from __future__ import annotations

from pathlib import Path

from conf.output_kinds import PAGE
from conf.outputs import Output
from data_pipeline.inspection.config import InspectConfig

TEMPLATE = Path(__file__).parent / "templates" / "inspect.html"


def inspect(config: InspectConfig) -> None:
    """Writes the page. Raises InputError if an input is missing or of the wrong kind."""
    output = Output(config.out, PAGE, config.overwrite, [config.data, config.run])
    output.check()

    from data_pipeline.inspection.content import page_content
    from data_pipeline.inspection.subject import load_subject
    from pages.page import render

    content = page_content(load_subject(config), config.documents, config.sequences, config.pairs)
    output.write(render(TEMPLATE, content))
    print(f"{config.out}: {output.path.stat().st_size / 1024:.0f} kB")
