"""lm-eval through its own `hf` model: scores against sums by hand, resuming, and bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from conf.errors import InputError
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.results import format_score, load_results, rows, scores_table
from eval.tasks.load import load_tasks
from eval.tasks.score import bits_per_byte_stderr
from eval.tasks.suites import Selection, known_suites, select
from tests.corpora import read_json_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(model, chat_model, tasks, tmp_path_factory) -> LmEvalConfig:
    return LmEvalConfig(
        models={"base": str(model), "other": str(chat_model)},
        task_folder=str(tasks),
        out=str(tmp_path_factory.mktemp("results") / "results.json"),
        dtype="float32",
    )


@pytest.fixture(scope="module")
def results(config) -> dict:
    harness.lm_eval(config)
    return load_results(Path(config.out))


def log_likelihoods(model: Path, context: str, choices: list[str]) -> list[float]:
    """Returns the log-likelihood of each choice after the context, in nats."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for choice in choices:
        before, after = tokenizer(context).input_ids, tokenizer(choice).input_ids
        with torch.no_grad():
            chances = hf(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        picked = chances.log_softmax(-1).gather(-1, torch.tensor(after)[:, None])
        found.append(picked.sum().item())
    return found


def test_accuracy_picks_the_likeliest_choice(model, tasks, results):
    right = []
    for row in read_json_lines(tasks / "bytes_code_continuation.jsonl"):
        scores = log_likelihoods(model, row["context"], row["choices"])
        right.append(float(scores.index(max(scores)) == row["label"]))
    found = results["models"]["base"]["tasks"]["bytes_code_continuation"]
    accuracy = found["metrics"]["acc"]
    assert accuracy["value"] == pytest.approx(statistics.fmean(right))
    assert accuracy["stderr"] == pytest.approx(statistics.stdev(right) / math.sqrt(len(right)))
    assert found["chance"] == 0.25
    assert found["samples"] == 12
    assert found["num_fewshot"] == 0


def test_mutual_information_subtracts_the_likelihood_without_context(model, tasks, results):
    right = []
    for row in read_json_lines(tasks / "bytes_prose_continuation.jsonl"):
        scores = log_likelihoods(model, row["context"], row["choices"])
        alone = log_likelihoods(model, "<s>", row["choices"])
        gains = [score - other for score, other in zip(scores, alone, strict=True)]
        right.append(float(gains.index(max(gains)) == row["label"]))
    found = results["models"]["base"]["tasks"]["bytes_prose_continuation"]
    assert found["metrics"]["acc_mutual_info"]["value"] == pytest.approx(statistics.fmean(right))


def test_bits_per_byte_equals_a_direct_computation(model, tasks, results):
    nats = size = 0.0
    for row in read_json_lines(tasks / "bytes_prose_perplexity.jsonl"):
        # lm-eval puts the tokenizer's BOS before a text.
        nats -= log_likelihoods(model, "<s>", [row["text"]])[0]
        size += len(row["text"].encode())
    found = results["models"]["base"]["tasks"]["bytes_prose_perplexity"]
    assert found["metrics"]["bits_per_byte"]["value"] == pytest.approx(
        nats / math.log(2) / size, rel=1e-5
    )
    assert found["metrics"]["bits_per_byte"]["stderr"] > 0
    assert found["chance"] is None


def test_the_result_file_records_settings_and_versions(results, model):
    assert list(results["models"]) == ["base", "other"]
    assert results["models"]["base"]["folder"] == str(model)
    assert results["packages"]["lm_eval"]
    assert results["models"]["base"]["settings"]["limit"] is None
    fingerprints = {entry["fingerprint"] for entry in results["models"].values()}
    assert len(fingerprints) == 2


def test_the_machine_is_not_described(config, tmp_path, monkeypatch):
    """lm-eval would start programs for that, and git complains outside of a repository."""
    from lm_eval import evaluator

    def started(*_: object) -> None:
        raise AssertionError("a program was started to describe the machine")

    monkeypatch.setattr(evaluator, "add_env_info", started)
    monkeypatch.setattr(evaluator, "get_git_commit_hash", started)
    harness.lm_eval(dataclasses.replace(config, limit=1, out=str(tmp_path / "results.json")))


def test_scored_models_are_skipped(config, results, make_model, tmp_path, monkeypatch):
    ran = []
    score = harness.score_model

    def watched(folder, *rest):
        ran.append(folder)
        return score(folder, *rest)

    monkeypatch.setattr(harness, "score_model", watched)
    harness.lm_eval(config)
    assert ran == []
    third = make_model(tmp_path / "third", seed=3)
    harness.lm_eval(dataclasses.replace(config, models={**config.models, "third": str(third)}))
    assert ran == [third]
    grown = load_results(Path(config.out))
    assert list(grown["models"]) == ["base", "other", "third"]
    assert grown["models"]["base"] == results["models"]["base"]
    make_model(third, seed=4)  # other weights under the same name
    harness.lm_eval(dataclasses.replace(config, models={**config.models, "third": str(third)}))
    assert ran == [third, third]
    with pytest.raises(InputError, match="the file has scores of base, other, which would be lost"):
        harness.lm_eval(dataclasses.replace(config, models={"third": str(third)}))
    assert list(load_results(Path(config.out))["models"]) == ["base", "other", "third"]


def test_an_interrupted_call_keeps_finished_models(config, tmp_path, monkeypatch, capfd):
    """Git is not called, as the folder may be outside of a repository."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "results.json"
    score = harness.score_model

    def stops_at_second(folder, *rest):
        if folder == Path(config.models["other"]):
            raise KeyboardInterrupt
        return score(folder, *rest)

    monkeypatch.setattr(harness, "score_model", stops_at_second)
    with pytest.raises(KeyboardInterrupt):
        harness.lm_eval(dataclasses.replace(config, out=str(out)))
    assert list(load_results(out)["models"]) == ["base"]
    assert "git" not in capfd.readouterr().err


def test_table_has_one_row_per_metric(results):
    found = [(task, metric) for task, metric, _ in rows(results)]
    assert ("bytes_code_continuation", "acc_mutual_info") in found
    assert ("bytes_code_perplexity", "bits_per_byte") in found
    assert ("bytes_code_perplexity", "word_perplexity") not in found
    made = scores_table(results)
    assert made.row_count == len(found) == 8
    assert [column.header for column in made.columns] == [
        "task",
        "metric",
        "base",
        "other",
        "chance",
    ]


def test_scores_are_written_in_their_units():
    assert format_score({"value": 0.25, "stderr": 0.0314}, "acc") == ("25.0%", "3.1")
    assert format_score({"value": 1.5, "stderr": None}, "bits_per_byte") == ("1.500", "")


def test_standard_error_of_a_ratio_is_the_bootstraps():
    draw = random.Random(0)
    samples = [(-draw.gauss(2, 0.4) * size, size) for size in draw.choices(range(50, 400), k=60)]
    boots = []
    for _ in range(2000):
        drawn = draw.choices(samples, k=len(samples))
        boots.append(-sum(n for n, _ in drawn) / sum(b for _, b in drawn) / math.log(2))
    assert bits_per_byte_stderr(samples) == pytest.approx(statistics.stdev(boots), rel=0.15)
    assert bits_per_byte_stderr(samples[:1]) is None


def test_suites_match_the_danube_reports():
    assert {"danube_zero_shot", "open_llm_v1"} <= set(known_suites())
    zero = select(LmEvalConfig(models={"m": "x"}, tasks="danube_zero_shot", out="out"))
    shots = {choice.task: (choice.num_fewshot, choice.metric) for choice in zero.choices}
    assert shots["hellaswag"] == (0, "acc_norm")
    assert shots["boolq"] == (0, "acc")
    assert shots["triviaqa"] == (5, "exact_match")
    leaderboard = select(LmEvalConfig(models={"m": "x"}, tasks="open_llm_v1", out="out"))
    assert {choice.task: choice.num_fewshot for choice in leaderboard.choices} == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
    }
    assert zero.built_in


def test_suites_name_tasks_and_metrics_of_lm_eval():
    """They are read from the folders of their tasks, as indexing all of lm-eval takes a minute."""
    from lm_eval.tasks import TaskManager

    root = Path(str(resources.files("lm_eval"))) / "tasks"
    folders = "arc hellaswag openbookqa piqa winogrande super_glue triviaqa truthfulqa gsm8k mmlu"
    folders += " bbh/cot_fewshot commonsense_qa coqa sciq"
    include = [str(root / folder) for folder in folders.split()]
    manager = TaskManager(include_path=include, include_defaults=False)
    for suite in known_suites():
        for choice in select(LmEvalConfig(models={"m": "x"}, tasks=suite, out="out")).choices:
            assert choice.task in manager.all_tasks
            files = [p for f in include for p in Path(f).rglob("*.yaml")]
            texts = [p.read_text() for p in files if f": {choice.task}\n" in p.read_text()]
            assert texts, choice
            assert choice.metric


def test_shots_for_all_tasks(tasks):
    config = LmEvalConfig(models={"m": "x"}, task_folder=str(tasks), num_fewshot=2, out="out")
    assert {choice.num_fewshot for choice in select(config).choices} == {2}


def test_tasks_from_a_folder_and_a_list(tasks):
    by_folder = select(LmEvalConfig(models={"m": "x"}, tasks=str(tasks), out="out"))
    assert len(by_folder.choices) == 6
    assert not by_folder.built_in
    names = ["bytes_code_continuation"]
    listed = select(LmEvalConfig(models={"m": "x"}, tasks=names, task_folder=str(tasks), out="out"))
    assert [choice.task for choice in listed.choices] == names
    assert not listed.built_in


def test_a_group_replaces_its_tasks_in_tables(config, tasks, tmp_path):
    names = ["bytes_code_continuation", "bytes_prose_continuation"]
    (tmp_path / "tasks").mkdir()
    group = {
        "group": "bytes_continuation",
        "task": names,
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tmp_path / "tasks" / "group.yaml").write_text(yaml.safe_dump(group))
    out = tmp_path / "results.json"
    harness.lm_eval(
        dataclasses.replace(
            config,
            models={"base": config.models["base"]},
            tasks=str(tmp_path / "tasks"),
            out=str(out),
            limit=8,
        )
    )
    found = load_results(out)
    scored = found["models"]["base"]["tasks"]
    assert set(scored) == {"bytes_continuation", *names}
    parts = [scored[name]["metrics"]["acc"]["value"] for name in names]
    assert scored["bytes_continuation"]["metrics"]["acc"]["value"] == statistics.fmean(parts)
    assert scored["bytes_continuation"]["samples"] == 16
    assert scored["bytes_continuation"]["chance"] == 0.25
    assert [task for task, *_ in rows(found)] == ["bytes_continuation"]


def test_unknown_task_is_refused(tasks):
    selection = select(
        LmEvalConfig(
            models={"m": "x"}, tasks="bytes_code_continuatoin", task_folder=str(tasks), out="out"
        )
    )
    with pytest.raises(InputError, match="did you mean 'bytes_code_continuation'"):
        load_tasks(Selection(selection.choices, selection.folders, built_in=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_folder": None}, "tasks=local: requires task_folder"),
        ({"task_folder": "nowhere"}, "task_folder=nowhere: the folder does not exist"),
        ({"tasks": "some/where"}, "tasks=some/where: the folder does not exist"),
        (
            {"models": {"mine": "nowhere"}},
            "models.mine=nowhere: there is no such Hugging Face folder",
        ),
        ({"device": "tpu"}, "device=tpu"),
        ({"chat": True}, r"chat=true: models\.base=.* has no chat template"),
    ],
)
def test_bad_input_ends_before_any_model_runs(config, tmp_path, changes, message):
    out = tmp_path / "results.json"
    with pytest.raises(InputError, match=message):
        harness.lm_eval(dataclasses.replace(config, out=str(out), **changes))
    assert not out.exists()


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"models=\{\}: expected at least one model"):
        LmEvalConfig(models={}, out="out")
    with pytest.raises(InputError, match="batch_size=0"):
        LmEvalConfig(models={"m": "x"}, out="out", batch_size=0)


def test_lost_data_file_is_named(tasks, tmp_path):
    content = yaml.safe_load((tasks / "bytes_code_perplexity.yaml").read_text())
    content["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"gone\.jsonl, which does not exist"):
        select(LmEvalConfig(models={"m": "x"}, task_folder=str(tmp_path), out="out"))


def test_an_uncached_data_set_is_reported_in_one_sentence(command, model, tmp_path):
    task = {
        "task": "far_away",
        "dataset_path": "headwater/no-such-data",
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "far_away.yaml").write_text(yaml.safe_dump(task))
    done = command(
        "eval",
        "lm_eval",
        f"models.base={model}",
        f"task_folder={tmp_path / 'tasks'}",
        f"out={tmp_path / 'results.json'}",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert done.returncode == 2
    assert (
        "tasks=far_away: the task's data set headwater/no-such-data is not in this machine's cache"
        in done.stderr
    )
    assert not (tmp_path / "results.json").exists()


def test_foreign_results_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"scores": []}))
    with pytest.raises(InputError, match="is not a result file"):
        load_results(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_results(path)
    with pytest.raises(InputError, match="does not exist"):
        load_results(tmp_path / "none.json")
