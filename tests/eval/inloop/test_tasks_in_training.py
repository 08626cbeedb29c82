"""lm-eval tasks on the sharded model: all layouts have the same scores, equal to the export's."""

from __future__ import annotations

import os

import pytest

from conf.errors import InputError
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.results import load_results
from pretrain.config import EvaluationConfig
from pretrain.hooks.tasks import Tasks
from tests.runs import arguments, records

LIMIT = 7
"""Samples per task: the requests of 12 questions and 5 texts do not divide by 3 processes."""
LAYOUTS = {
    "fsdp3": (3, {}),
    "fsdp2_tp2": (4, {"parallel__tp": 2}),
    "cp2": (2, {"parallel__cp": 2}),
}


def train(command, corpus, run_dir, tasks, processes=0, **changes):
    changes |= {
        "recipe__global_batch_tokens": 1536,
        "parallel__micro_batch_tokens": 256,
        "stop_after": 2,
        "validation__every_steps": 0,
        "checkpoint__every_steps": 2,
        "evaluation__tasks": tasks,
        "evaluation__limit": LIMIT,
        "evaluation__every_steps": 2,
    }
    quiet = {"WANDB_API_KEY": "", "NETRC": os.devnull}
    return command(*arguments(corpus.folder, run_dir, **changes), processes=processes, **quiet)


@pytest.fixture(scope="module")
def single(command, named_corpus, tasks, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("single") / "run"
    done = train(command, named_corpus, run_dir, tasks)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_scores_are_those_of_the_export(single, command, tasks, tmp_path):
    """They are equal bit for bit: both run the same passes with the same kernels on a CPU."""
    exported = tmp_path / "exported"
    done = command("pretrain", "export", f"run={single}", f"out={exported}", "dtype=float32")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "results.json"
    harness.lm_eval(
        LmEvalConfig(
            models={"run": str(exported)},
            task_folder=str(tasks),
            out=str(out),
            dtype="float32",
            limit=LIMIT,
        )
    )
    expected = load_results(out)["models"]["run"]["tasks"]
    (record,) = records(single, "eval")
    assert record["step"] == 2
    assert record["tasks"].keys() == expected.keys()
    assert len(expected) == 6
    for task, scores in record["tasks"].items():
        assert scores.pop("samples") == expected[task]["samples"] <= LIMIT
        values = {name: metric["value"] for name, metric in expected[task]["metrics"].items()}
        assert scores == values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_scores(layout, single, command, named_corpus, tasks, tmp_path):
    processes, changes = LAYOUTS[layout]
    run_dir = tmp_path / layout
    done = train(command, named_corpus, run_dir, tasks, processes, **changes)
    assert done.returncode == 0, done.stderr
    (expected,) = records(single, "eval")
    (found,) = records(run_dir, "eval")
    assert found["tasks"].keys() == expected["tasks"].keys()
    for task, scores in found["tasks"].items():
        assert scores == pytest.approx(expected["tasks"][task], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tasks": "some/folder"}, "evaluation.tasks=some/folder: the folder does not exist"),
        ({"tasks": "local"}, "evaluation.tasks=local: requires evaluation.task_folder"),
    ],
)
def test_missing_tasks_are_named(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Tasks(EvaluationConfig(**settings))


def test_tasks_that_generate_text_are_refused(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
    )
    with pytest.raises(InputError, match="sums: the task generates text"):
        Tasks(EvaluationConfig(tasks=str(tmp_path)))


def test_lm_eval_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="requires the package lm_eval, which is not installed"):
        Tasks(EvaluationConfig(tasks=["piqa"]))


def test_bad_tasks_end_a_run_before_anything_is_written(command, named_corpus, tmp_path):
    run_dir = tmp_path / "run"
    done = train(command, named_corpus, run_dir, "some/folder")
    assert done.returncode == 2
    assert "error: evaluation.tasks=some/folder: the folder does not exist" in done.stderr
    assert not run_dir.exists()


def test_requests_that_the_model_cannot_answer_end_a_run_before_it_trains(
    command, named_corpus, tmp_path
):
    """The run must not fail at its first evaluation, which may be days later."""
    (tmp_path / "data.jsonl").write_text(f'{{"q": "1 + 1", "a": "{"two " * 2000}"}}\n')
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\noutput_type: loglikelihood\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: acc}]\n"
    )
    run_dir = tmp_path / "run"
    done = train(command, named_corpus, run_dir, str(tmp_path), processes=2)
    assert done.returncode != 0
    assert "error: evaluation.tasks=sums: choice 0" in done.stderr
    assert "context length of 256. Shorten it, or remove the task." in done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0]
    assert not run_dir.exists()
