"""The model card: `README.md` of an exported folder, with the front matter of the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from conf.errors import InputError
from eval.files import write_text
from eval.page_tuning import record_of
from eval.results import SHARES, rows

Page = dict[str, Any]


def write_card(folder: Path, page: Page, results: Page | None) -> None:
    """Writes README.md from what the report says.

    page: the content of the report; results: scores of lm_eval.

    Raises:
        InputError: the folder is no Hugging Face folder.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"card={folder} is no Hugging Face folder: it has no config.json; expected what "
            "python -m pretrain export or finetune made."
        )
    write_text(folder / "README.md", front_matter(folder, page, results) + body(folder, page))


def front_matter(folder: Path, page: Page, results: Page | None) -> str:
    """What the Hub reads: how to load the model, and its scores as a `model-index`."""
    about: Page = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["headwater"],
    }
    mine = scores_of(folder, results)
    if mine:
        about["model-index"] = [
            {
                "name": page["name"],
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": task, "type": task},
                        "metrics": [{"type": metric.split(",")[0], "value": value}],
                    }
                    for task, metric, value in mine
                ],
            }
        ]
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n"


def scores_of(folder: Path, results: Page | None) -> list[tuple[str, str, float]]:
    """Task, metric and value of the model in this folder; shares in percent."""
    if results is None:
        return []
    places = {Path(model["folder"]).resolve(): name for name, model in results["models"].items()}
    name = places.get(folder.resolve())
    return [
        (
            task,
            metric,
            round(scores[name]["value"] * (100 if metric.split(",")[0] in SHARES else 1), 4),
        )
        for task, metric, scores in rows(results)
        if name in scores
    ]


def body(folder: Path, page: Page) -> str:
    """The card's text, in Markdown."""
    tuned = tuned_stages(folder, page)
    parts = [
        f"# {page['name']}",
        " ".join([page["summary"], *(stage["sentence"] for stage in tuned)]),
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```',
        "## Data",
        table(
            ["source", "documents", "tokens", "tokens consumed", "epochs"],
            [
                [r["source"], r["documents"], r["tokens"], r["seen"], r["epochs"]]
                for r in page["data"]
            ],
        ),
        "## Training",
        table(
            ["stage", "sequence", "planned tokens", "steps done", "mixture", "last loss"],
            [
                [s["name"], s["seq_len"], s["tokens"], s["steps"], s["mixture"], s["loss"]]
                for s in page["stages"]
            ],
        ),
        " ".join(page["incidents"]),
        *(f"## {s['title']}\n\n{table(['', ''], s['facts'])}" for s in tuned),
        "## Cost",
        table(["", ""], page["cost"]),
    ]
    if page["evaluation"]:
        names = page["evaluation"]["models"]
        parts += [
            "## Evaluation",
            table(
                ["task", "metric", *names], [scores_row(row) for row in page["evaluation"]["rows"]]
            ),
            f"Value ± standard error. {page['evaluation']['limited']}",
        ]
    for suite in page["suites"]:
        cited = [f"{number}. {source}" for number, source in enumerate(suite["sources"], 1)]
        parts += [
            f"### {suite['name']}, percent",
            table(["model", *suite["heads"], "average"], [suite_row(r) for r in suite["rows"]]),
            "\n".join(cited),
        ]
    parts += ["## Lineage", table(["", ""], page["lineage"])]
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def tuned_stages(folder: Path, page: Page) -> list[Page]:
    """How the model of this folder was tuned: the stages of the page that end in it.

    Raises:
        InputError: it was tuned, and the page does not say how.
    """
    if record_of(folder) is None:
        return []
    places = [stage["folder"].resolve() for stage in page["tuning"]]
    if folder.resolve() not in places:
        raise InputError(
            f"card={folder} is a tuned model, of which this report is not told: give tuned.NAME="
            "with this folder, after those that it was tuned from."
        )
    return page["tuning"][: places.index(folder.resolve()) + 1]


def scores_row(row: Page) -> list[str]:
    """A line of the evaluation."""
    cells = [
        "" if cell is None else " ± ".join(filter(None, (cell["value"], cell["stderr"])))
        for cell in row["cells"]
    ]
    return [row["task"], row["metric"], *cells]


def suite_row(row: Page) -> list[str]:
    """A line of a suite's table."""
    source = f" [{row['source']}]" if row["source"] else ""
    cells = [score + (f" ± {error}" if error else "") for score, error in row["cells"]]
    return [f"{row['model']}{source}", *cells, row["average"]]


def table(heads: list[str], lines: Any) -> str:
    """In Markdown; bars in a cell would end it."""
    rule = "|---" * len(heads) + "|"
    made = [f"| {' | '.join(re.sub(r'[|]', '/', str(c)) for c in line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(heads)} |", rule, *made])
