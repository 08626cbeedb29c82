"""Writes random rows in the formats of the suites' data sets, and task files that read them.

Tests cannot download data sets. Prompts, choices and metrics remain those of lm-eval.
"""

from __future__ import annotations

import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

ROWS = 28
"""Rows per task: more than the 25 few-shot examples of a question."""
WORDS = ["river", "stone", "light", "green", "seven", "paper", "north", "sugar", "metal", "quiet"]


def question(draw: random.Random) -> str:
    return " ".join(draw.sample(WORDS, 3))


def choices(draw: random.Random, count: int) -> list[str]:
    return [f"{word} {draw.choice(WORDS)}" for word in draw.sample(WORDS, count)]


def lettered(draw: random.Random, count: int = 4) -> dict[str, Any]:
    return {"text": choices(draw, count), "label": list("ABCDE"[:count])}


def arc(draw: random.Random) -> dict[str, Any]:
    return {"question": question(draw), "choices": lettered(draw), "answerKey": draw.choice("ABCD")}


def hellaswag(draw: random.Random) -> dict[str, Any]:
    return {
        "activity_label": question(draw),
        "ctx_a": "They go [title] on",
        "ctx_b": "then",
        "endings": choices(draw, 4),
        "label": str(draw.randrange(4)),
    }


def boolq(draw: random.Random) -> dict[str, Any]:
    return {
        "passage": question(draw),
        "question": question(draw),
        "label": draw.randrange(2),
    }


def openbookqa(draw: random.Random) -> dict[str, Any]:
    return {
        "question_stem": question(draw),
        "choices": lettered(draw),
        "answerKey": draw.choice("ABCD"),
    }


def piqa(draw: random.Random) -> dict[str, Any]:
    one, other = choices(draw, 2)
    return {"goal": question(draw), "sol1": one, "sol2": other, "label": draw.randrange(2)}


def triviaqa(draw: random.Random) -> dict[str, Any]:
    return {"question": question(draw), "answer": {"aliases": choices(draw, 2)}}


def winogrande(draw: random.Random) -> dict[str, Any]:
    one, other = draw.sample(WORDS, 2)
    return {
        "sentence": f"The {one} met the {other} since _ was late.",
        "option1": one,
        "option2": other,
        "answer": draw.choice("12"),
    }


def mmlu(draw: random.Random) -> dict[str, Any]:
    return {
        "question": question(draw),
        "choices": choices(draw, 4),
        "answer": draw.randrange(4),
    }


def truthfulqa(draw: random.Random) -> dict[str, Any]:
    return {
        "question": question(draw),
        "mc1_targets": {"choices": choices(draw, 3), "labels": [1, 0, 0]},
        "mc2_targets": {"choices": choices(draw, 4), "labels": [1, 1, 0, 0]},
    }


def gsm8k(draw: random.Random) -> dict[str, Any]:
    return {"question": question(draw), "answer": f"So it is.\n#### {draw.randrange(99)}"}


def bbh(draw: random.Random) -> dict[str, Any]:
    return {"input": "not True is", "target": draw.choice(("True", "False"))}


def commonsense_qa(draw: random.Random) -> dict[str, Any]:
    return {
        "question": question(draw),
        "choices": lettered(draw, 5),
        "answerKey": draw.choice("ABCDE"),
    }


def coqa(draw: random.Random) -> dict[str, Any]:
    asked = {"input_text": [question(draw), question(draw)]}
    return {
        "story": question(draw),
        "questions": asked,
        "answers": {"input_text": choices(draw, 2)},
    }


def sciq(draw: random.Random) -> dict[str, Any]:
    keys = ("distractor1", "distractor2", "distractor3", "correct_answer")
    named = dict(zip(keys, choices(draw, 4), strict=True))
    return {"support": question(draw), "question": question(draw), **named}


TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", arc),
    "arc_challenge": ("arc/arc_challenge.yaml", arc),
    "hellaswag": ("hellaswag/hellaswag.yaml", hellaswag),
    "boolq": ("super_glue/boolq/default.yaml", boolq),
    "openbookqa": ("openbookqa/openbookqa.yaml", openbookqa),
    "piqa": ("piqa/piqa.yaml", piqa),
    "triviaqa": ("triviaqa/default.yaml", triviaqa),
    "winogrande": ("winogrande/default.yaml", winogrande),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", mmlu),
    "mmlu_virology": ("mmlu/default/mmlu_virology.yaml", mmlu),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", truthfulqa),
    "gsm8k": ("gsm8k/gsm8k.yaml", gsm8k),
    "bbh_cot_fewshot_boolean_expressions": (
        "bbh/cot_fewshot/boolean_expressions.yaml",
        bbh,
    ),
    "commonsense_qa": ("commonsense_qa/default.yaml", commonsense_qa),
    "coqa": ("coqa/default.yaml", coqa),
    "sciq": ("sciq/sciq.yaml", sciq),
}
GROUPS = {
    "mmlu": (["mmlu_anatomy", "mmlu_virology"], {"metric": "acc", "weight_by_size": True}),
    "bbh_cot_fewshot": (
        ["bbh_cot_fewshot_boolean_expressions"],
        {"metric": "exact_match", "weight_by_size": True, "filter_list": "get-answer"},
    ),
}
WRITTEN = ("triviaqa", "gsm8k", "bbh_cot_fewshot_boolean_expressions", "coqa")
"""Tasks that generate text."""


def write_suites(folder: Path, new_tokens: int = 8) -> Path:
    """A task folder that has every task of `conf/tasks/`; answers are new_tokens long at most."""
    root = Path(str(resources.files("lm_eval"))) / "tasks"
    folder.mkdir(parents=True)
    for name, (file, row) in TASKS.items():
        draw = random.Random(name)
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row(draw)) + "\n" for _ in range(ROWS)))
        splits = dict.fromkeys(("train", "validation", "test", "dev"), str(data))
        content: dict[str, Any] = {
            "include": str(root / file),
            "task": name,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        if name in WRITTEN:
            until = ["\n"]
            content["generation_kwargs"] = {"until": until, "max_gen_toks": new_tokens}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for name, (tasks, metric) in GROUPS.items():
        group = {"group": name, "task": tasks, "aggregate_metric_list": [metric]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    return folder
