"""The model card: `README.md` of an exported folder, with the front matter of the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from conf.errors import InputError
from eval.report.command import card_of
from eval.report.page_tuning import record_of
from eval.scores.results import SHARES, rows
from model.config import ModelConfig
from model.families.folder import read_config

Page = dict[str, Any]
SHAPE = (
    "architecture",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
)


def write_card(folder: Path, page: Page, results: Page | None) -> None:
    """Writes README.md from what the report says.

    page: the content of the report; results: scores of lm_eval.

    Raises:
        InputError: the folder is no Hugging Face folder, or not one of this run's.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"card={folder} is no Hugging Face folder: it has no config.json; expected what "
            "python -m pretrain export or finetune made."
        )
    card_of(folder).write(front_matter(folder, page, results) + body(folder, page))


def check_network(folder: Path, network: ModelConfig) -> None:
    """Raises InputError where the model of a folder cannot be what a run trained. Tuning may add
    tokens, and nothing else."""
    theirs = read_config(folder)
    for key in SHAPE:
        found, expected = getattr(theirs, key), getattr(network, key)
        if found != expected and not (key == "vocab_size" and found > expected):
            raise InputError(
                f"card: {folder} holds another model than the run: its {key} is {found}, expected "
                f"{expected}; give the folder that was exported from this run, or tuned from that."
            )


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
            [
                *("stage", "sequence", "RoPE base", "planned tokens", "steps done", "mixture"),
                "last loss",
            ],
            [
                [
                    *(s["name"], s["seq_len"], s["rope_theta"], s["tokens"], s["steps"]),
                    *(s["mixture"], s["loss"]),
                ]
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
    """How the model of this folder was tuned: the stages of the page that led to it.

    Raises:
        InputError: it was tuned, and the page does not say how, or began with another model.
    """
    stages = {stage["folder"].resolve(): stage for stage in page["tuning"]}
    found: list[Page] = []
    place = folder.resolve()
    while record_of(place) is not None:
        if place not in stages:
            raise InputError(
                f"card={folder} is a tuned model, and this report is not told of {place}: give "
                "tuned.NAME= with it and each folder that it was tuned from, in their order."
            )
        if stages[place] in found:  # tuned into its own place
            break
        found.insert(0, stages[place])
        place = Path(stages[place]["model"]).resolve()
    if found and not place.is_dir():  # it is elsewhere now: the order of the report must do
        return page["tuning"][: page["tuning"].index(found[0])] + found
    check_network(place, page["network"])
    return found


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
