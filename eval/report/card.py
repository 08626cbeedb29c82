"""Writes the model card: `README.md` of an exported folder, with front matter for the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.model_card import (
    CardConfig,
    front_matter,
    loading_example,
    markdown_table,
    read_front_matter,
)
from conf.output_kinds import CARD
from conf.outputs import Output
from eval.report.page_tuning import record_name
from eval.scores.results import FRACTIONS, rows
from model.config import ModelConfig
from model.families.folder import read_config

Content = dict[str, Any]
"""Content of the report, a part of it, or the results of lm_eval."""
SHAPE = (
    "architecture",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
)


def card_output(folder: str | Path) -> Output:
    """Returns the output file for an exported folder's model card, which replaces an older card."""
    return Output(Path(folder) / "README.md", CARD, overwrite=True, key="card")


def write_card(folder: Path, content: Content, results: Content | None) -> None:
    """Writes README.md from the content of the report.

    results: content of a result file of lm_eval, None for a card without scores.

    Raises:
        InputError: the folder is not a Hugging Face folder, or holds a model of another run.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"card={folder}: the folder has no config.json. Give a folder made by python -m "
            "pretrain export or by python -m finetune."
        )
    card_output(folder).write(header(folder, content, results) + body(folder, content))


def check_network(folder: Path, network: ModelConfig) -> None:
    """Raises InputError if a folder's model cannot come from a run with this network.

    Tuning may enlarge the vocabulary; the rest of the shape must be equal.
    """
    exported = read_config(folder)
    for key in SHAPE:
        actual, expected = getattr(exported, key), getattr(network, key)
        if actual != expected and not (key == "vocab_size" and actual > expected):
            raise InputError(
                f"card={folder}: {key} is {actual}, but the run has {expected}. Give a folder that "
                "was exported from this run, or tuned from such a folder."
            )


def header(folder: Path, content: Content, results: Content | None) -> str:
    """Returns the YAML metadata for the Hub, with the scores as a `model-index`."""
    metadata: Content = CardConfig().metadata(read_front_matter(folder))
    scores = scores_of(folder, results)
    if scores:
        metadata["model-index"] = model_index(content["name"], scores)
    return front_matter(metadata)


def model_index(name: str, scores: Sequence[tuple[str, str, float]]) -> list[Content]:
    """Returns the `model-index` of a card, from the (task, metric, value) of each score."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": task, "type": task},
            "metrics": [{"type": metric.split(",")[0], "value": value}],
        }
        for task, metric, value in scores
    ]
    return [{"name": name, "results": results}]


def scores_of(folder: Path, results: Content | None) -> list[tuple[str, str, float]]:
    """Returns (task, metric, value) per score of a folder's model; fractions are in percent."""
    if results is None:
        return []
    names = {Path(model["folder"]).resolve(): name for name, model in results["models"].items()}
    name = names.get(folder.resolve())
    return [
        (
            task,
            metric,
            round(scores[name]["value"] * (100 if metric.split(",")[0] in FRACTIONS else 1), 4),
        )
        for task, metric, scores in rows(results)
        if name in scores
    ]


def body(folder: Path, content: Content) -> str:
    """Returns the Markdown text of the card."""
    tuned = tuned_stages(folder, content)
    parts = [
        f"# {content['name']}",
        " ".join([content["summary"], *(stage["sentence"] for stage in tuned)]),
        loading_example(),
        "## Data",
        markdown_table(
            ["source", "documents", "tokens", "tokens consumed", "epochs"],
            [
                [r["source"], r["documents"], r["tokens"], r["seen"], r["epochs"]]
                for r in content["data"]
            ],
        ),
        "## Training",
        markdown_table(
            [
                *("stage", "sequence", "RoPE base", "planned tokens", "completed steps", "mixture"),
                "last loss",
            ],
            [
                [
                    *(s["name"], s["seq_len"], s["rope_theta"], s["tokens"], s["steps"]),
                    *(s["mixture"], s["loss"]),
                ]
                for s in content["stages"]
            ],
        ),
        " ".join(content["incidents"]),
        *(f"## {s['title']}\n\n{markdown_table(['', ''], s['facts'])}" for s in tuned),
        "## Cost",
        markdown_table(["", ""], content["cost"]),
    ]
    parts += score_parts(content)
    parts += ["## Lineage", markdown_table(["", ""], content["lineage"])]
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def score_parts(content: Content) -> list[str]:
    """Returns the score tables of the report, as parts of the card; empty if it has no scores."""
    parts = []
    if content["evaluation"]:
        evaluation = content["evaluation"]
        lines = [scores_row(row) for row in evaluation["rows"]]
        parts += [
            "## Evaluation",
            markdown_table(["task", "metric", *evaluation["models"]], lines),
            f"Value ± standard error. {evaluation['limited']}",
        ]
    for suite in content["suites"]:
        lines = [suite_row(row) for row in suite["rows"]]
        parts += [
            f"### {suite['name']}, percent",
            markdown_table(["model", *suite["heads"], "average"], lines),
            "\n".join(f"{number}. {source}" for number, source in enumerate(suite["sources"], 1)),
        ]
    return parts


def tuned_stages(folder: Path, content: Content) -> list[Content]:
    """Returns the report's tuning stages that led to the model in a folder.

    Raises:
        InputError: the model was tuned from another model, or in a stage that is missing from the
            report.
    """
    stages = {stage["folder"].resolve(): stage for stage in content["tuning"]}
    ancestors: list[Content] = []
    current = folder.resolve()
    while record_name(current) is not None:
        if current not in stages:
            raise InputError(
                f"card={folder}: the report lacks {current}, a stage of this tuned model. Add "
                "tuned.NAME= for it and for each folder that it was tuned from, in order."
            )
        if stages[current] in ancestors:  # the folder was replaced by its own tuned model
            break
        ancestors.insert(0, stages[current])
        current = parent_of(stages[current], stages)
    if ancestors and not current.is_dir():  # the folder was moved: rely on the report's order
        return content["tuning"][: content["tuning"].index(ancestors[0])] + ancestors
    check_network(current, content["network"])
    return ancestors


def parent_of(stage: Content, stages: Mapping[Path, Content]) -> Path:
    """Returns the folder of the model that a stage was tuned from, which may not exist.

    Records have only its name, since they are published. A folder of that name next to the result
    is taken first, then that of another stage in the report.
    """
    given, folder = Path(stage["model"]), stage["folder"].resolve()
    if given.name != str(given):  # a path, in records of earlier versions
        return given.resolve()
    sibling = folder.parent / given
    named = [path for path in stages if path.name == given.name and path != folder]
    if (sibling / "config.json").is_file() and sibling != folder:
        return sibling
    return named[0] if len(named) == 1 else sibling


def scores_row(row: Content) -> list[str]:
    """Returns the table cells for a row of the evaluation."""
    cells = [
        "" if cell is None else " ± ".join(filter(None, (cell["value"], cell["stderr"])))
        for cell in row["cells"]
    ]
    return [row["task"], row["metric"], *cells]


def suite_row(row: Content) -> list[str]:
    """Returns the table cells for a row of a suite."""
    source = f" [{row['source']}]" if row["source"] else ""
    cells = [score + (f" ± {error}" if error else "") for score, error in row["cells"]]
    return [f"{row['model']}{source}", *cells, row["average"]]
