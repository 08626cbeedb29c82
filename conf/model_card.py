"""Parts of a model card: the `README.md` of a model folder, as the Hugging Face Hub reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml


def model_card(name: str, summary: str, facts: Mapping[str, str], example: str = "") -> str:
    """Returns a card with a summary, a table of facts and a code example."""
    parts = [summary, markdown_table(["", ""], facts.items()), loading_example(example)]
    return f"{front_matter()}# {name}\n\n" + "\n\n".join(parts) + "\n"


def describe_teacher(teacher: Mapping[str, Any]) -> str:
    """Returns a sentence part that names a teacher, from the `teacher` of a checkpoint."""
    step = f", step {teacher['step']}" if "step" in teacher else ""
    caches = f", cached in {' and '.join(teacher['caches'])}" if "caches" in teacher else ""
    return (
        f"{teacher['path']}{step}, {teacher['fingerprint'][:16]}; its {teacher['top_k']} most "
        f"probable tokens at temperature {teacher['temperature']:g}{caches}"
    )


def front_matter(metadata: Mapping[str, Any] | None = None) -> str:
    """Returns the YAML header that tells the Hub how to load the model.

    metadata: further keys, such as `tags` or `model-index`.
    """
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", **(metadata or {})}
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; `|` in a cell becomes `/`."""
    lines = [_table_row(heads), "|---" * len(heads) + "|", *map(_table_row, rows)]
    return "\n".join(lines)


def loading_example(more: str = "") -> str:
    """Returns a code block that loads the model and tokenizer, and ends with the text `more`."""
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n{more}```'
    )


def _table_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
