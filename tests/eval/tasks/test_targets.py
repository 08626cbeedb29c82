"""Tasks with unanswerable samples, or with requests beyond the context length, are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.errors import InputError
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.results import load_results
from eval.tasks.load import load_tasks, quiet
from eval.tasks.suites import select
from eval.tasks.targets import is_choice
from pretrain.config import EvaluationConfig
from pretrain.hooks.tasks import Tasks

LONG = "word " * 130
ROW = {"q": "Which number?", "choices": ["0", "1", "2"], "label": 1}


def write_task(folder: Path, rows: list[dict], **settings: Any) -> Path:
    """Writes a task with one sample per row."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    if settings.get("output_type", "multiple_choice") != "multiple_choice":
        del task["doc_to_choice"]
    (folder / "quiz.yaml").write_text(yaml.safe_dump(task | settings))
    return folder


def load(folder: Path, limit: int | None = None) -> None:
    with quiet(offline=True):
        load_tasks(select(LmEvalConfig({"m": "x"}, tasks=str(folder), out="x")), limit=limit)


@pytest.fixture
def score(model, tmp_path):
    def run(folder: Path) -> dict:
        out = tmp_path / "results.json"
        harness.lm_eval(
            LmEvalConfig({"m": str(model)}, tasks=str(folder), out=str(out), dtype="float32")
        )
        return load_results(out)["models"]["m"]["tasks"]["quiz"]

    return run


def labels(*found: Any) -> list[dict]:
    return [ROW | {"label": label} for label in found]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (
            labels(*"ABCABC"),
            {},
            r"6 of 6 samples of quiz have no correct choice: sample 0 .* 'A'",
        ),
        (
            labels(1, 2, 3),
            {},
            r"1 of 3 samples of quiz have no correct choice: sample 2 .* target 3",
        ),
        (labels(0, -1), {}, r"1 of 2 samples of quiz have no correct choice: .* target '-1'"),
        (labels(0, -1), {"doc_to_target": "label"}, r"1 of 2 .* no correct choice: .* target -1"),
        (labels("one", "2"), {"doc_to_target": "label"}, r"1 of 2 .*: sample 0 .* target 'one'"),
        (labels(0, None), {"doc_to_target": "label"}, r"1 of 2 .* no correct choice"),
        (labels([0, 1], [7, 8]), {"doc_to_target": "label"}, r"1 of 2 .* target \[7, 8\]"),
        (labels([0], []), {"doc_to_target": "label"}, r"1 of 2 .* target \[\]"),
        (labels(3, 3), {}, r"2 of 2 samples of quiz have no correct choice: .* target 3 and"),
        (labels(3, 1), {"doc_to_target": "label"}, r"1 of 2 .* correct choice: .* target 3 and"),
        ([ROW | {"choices": ["", "1"]}], {}, r"its first sample has an empty choice"),
        ([ROW | {"choices": []}], {"doc_to_target": "label"}, r"no correct choice"),
        ([ROW, ROW | {"choices": []}], {}, r"1 of 2 .*: sample 1 has no choices"),
        (
            [{"t": "a"}, {"t": ""}],
            {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{t}}"},
            r"1 of 2 samples of quiz have no text: sample 1 has the target ''; a sample is text",
        ),
        (
            [{"q": "a", "t": ""}],
            {"output_type": "loglikelihood", "doc_to_target": "{{t}}"},
            r"1 of 1 samples of quiz have no target",
        ),
    ],
)
def test_local_tasks_with_unanswerable_samples_are_refused(tmp_path, rows, settings, words):
    with pytest.raises(InputError, match=f"^tasks=quiz: .*{words}"):
        load(write_task(tmp_path, rows, **settings))
    with pytest.raises(InputError, match=r"^evaluation\.tasks=quiz: "):
        Tasks(EvaluationConfig(tasks=str(tmp_path)))


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (labels(0, 1, 2), {}),
        (labels("0", "1", "2"), {}),
        (labels("0", "2"), {"doc_to_target": "label"}),  # the text of a choice
        (labels([0, 9], [1]), {"doc_to_target": "label"}),  # one of several is enough
    ],
)
def test_tasks_with_answerable_samples_are_accepted(tmp_path, rows, settings):
    load(write_task(tmp_path, rows, **settings))


def test_samples_beyond_the_limit_do_not_count(tmp_path):
    load(write_task(tmp_path, labels(0, 1, "A")), limit=2)


def test_targets_are_compared_as_in_lm_eval():
    right: list[object] = [0, 2, 1.0, "b", True]
    wrong: list[object] = [3, -1, 1.5, "1", None, "B", -100]
    assert [is_choice(target, ["a", "b", "c"]) for target in right] == [True] * len(right)
    assert [is_choice(target, ["a", "b", "c"]) for target in wrong] == [False] * len(wrong)


def test_texts_without_a_target_are_reported(tmp_path, capsys):
    load(
        write_task(
            tmp_path,
            [{"q": "a", "t": ""}, {"q": "a", "t": "b"}],
            output_type="generate_until",
            doc_to_target="{{t}}",
            metric_list=[{"metric": "exact_match"}],
        )
    )
    told = "tasks=quiz: 1 of 2 samples of quiz have no target: sample 0 has the target ''"
    assert told in capsys.readouterr().out


def test_built_in_tasks_with_unanswerable_samples_are_reported(tmp_path, capsys, monkeypatch):
    """HellaSwag's test rows are an example: their labels are not published."""
    monkeypatch.setattr("eval.tasks.load._is_local", lambda *_: False)
    load(write_task(tmp_path / "some", labels(0, 1, "")))
    assert "tasks=quiz: 1 of 3 samples of quiz have no correct choice" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 of 2 samples of quiz have no correct choice"):
        load(write_task(tmp_path / "all", labels("A", "B")))


def test_warnings_of_lm_eval_are_printed(score, tmp_path, capsys, monkeypatch):
    """Each kind of warning about scores is printed once, with its count."""
    monkeypatch.setattr("eval.tasks.load.unanswerable", lambda *_: None)
    folder = write_task(tmp_path / "tasks", labels(0, 1, 2, "A", "B"))
    assert score(folder)["samples"] == 5
    said = capsys.readouterr().out
    assert "lm-eval warns 2 times: Label index was not in within range of available choi" in said


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (
            [ROW, ROW | {"choices": ["0", LONG, "1"]}],
            {},
            r"tasks=quiz: choice 1 \('word .*\) of sample 1 has \d+ tokens, more than .* 512",
        ),
        (
            [{"q": "a", "t": LONG}],
            {"output_type": "loglikelihood", "doc_to_target": "{{t}}"},
            r"tasks=quiz: choice 0 .* of sample 0 has \d+ tokens",
        ),
        (
            [ROW, ROW | {"choices": ["0", "", "1"]}],
            {"target_delimiter": ""},
            r"tasks=quiz: choice 1 \(''\) of sample 1 is empty",
        ),
        (
            [ROW | {"q": "  "}],
            {},
            r"tasks=quiz: .* of sample 0 follows a context that consists of spaces only",
        ),
    ],
)
def test_requests_beyond_the_context_length_are_refused(
    score, corpus, tmp_path, rows, settings, words
):
    folder = write_task(tmp_path / "tasks", rows, **settings)
    with pytest.raises(InputError, match=words):
        score(folder)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(InputError, match=rf"^evaluation\.{words}"):
        Tasks(EvaluationConfig(tasks=str(folder))).check(corpus, 512)


def test_truncated_questions_are_counted(score, corpus, tmp_path, capsys):
    folder = write_task(tmp_path / "tasks", [ROW, ROW | {"q": LONG}])
    assert score(folder)["samples"] == 2
    told = "quiz: 3 requests exceed the model's context length and were truncated at the beginning."
    assert told in capsys.readouterr().out
    Tasks(EvaluationConfig(tasks=str(folder))).check(corpus, 512)
    assert told in capsys.readouterr().out


def test_texts_longer_than_the_context_are_scored_in_windows(score, corpus, tmp_path):
    metrics = [{"metric": "bits_per_byte"}]
    settings = {"output_type": "loglikelihood_rolling", "metric_list": metrics}
    rows = [{"t": LONG * 2}, {"t": "a"}]
    folder = write_task(tmp_path / "tasks", rows, doc_to_text="", doc_to_target="{{t}}", **settings)
    assert score(folder)["metrics"]["bits_per_byte"]["value"] > 0
    Tasks(EvaluationConfig(tasks=str(folder))).check(corpus, 512)


def test_tasks_that_generate_more_than_the_context_are_refused(score, tmp_path, capsys):
    settings = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    rows = [{"q": LONG, "label": "x"}]
    for asked in ({"max_gen_toks": 512}, {"max_new_tokens": 4096}):
        kwargs = {"generation_kwargs": {"until": ["x"], **asked}}
        folder = write_task(tmp_path / "tasks", rows, **settings, **kwargs)
        with pytest.raises(
            InputError, match=r"quiz: the task generates up to \d+ tokens, but the m"
        ):
            score(folder)
    folder = write_task(
        tmp_path / "tasks", rows, generation_kwargs={"until": ["x"], "max_gen_toks": 4}, **settings
    )
    assert score(folder)["samples"] == 1
    assert "quiz: 1 requests exceed the model's context length" in capsys.readouterr().out


def test_a_check_restores_the_random_generators(corpus, tmp_path):
    import random

    hook = Tasks(EvaluationConfig(tasks=str(write_task(tmp_path, [ROW] * 3))))
    random.seed(7)
    expected = random.Random(7).random()
    hook.check(corpus, 512)
    assert random.random() == expected
