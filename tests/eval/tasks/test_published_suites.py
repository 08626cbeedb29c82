"""The published suites on models of other families, published tables, and comparisons of models."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from conf.errors import InputError
from conf.wandb_run import LoggerConfig
from eval.scores import harness
from eval.scores.compare import CompareConfig, compare, differences, merge_results, paired_stderr
from eval.scores.config import LmEvalConfig
from eval.scores.published import (
    PublishedConfig,
    print_published,
    published_files,
    published_rows,
    render_suite,
    suite_tables,
)
from eval.scores.results import load_results
from eval.tasks import squad_metrics
from eval.tasks.fetch import FetchConfig, fetch
from eval.tasks.suites import known_suites, select, suite_choices
from tests.corpora import VOCAB_SIZE, byte_tokenizer
from tests.eval.local_suites import write_suites

LIMIT = 2
RUN = ["danube_zero_shot", "danube3_academic"]
"""Suites to run; open_llm_v1 is contained in the second one."""


@pytest.fixture(scope="module")
def suites(tmp_path_factory) -> Path:
    return write_suites(tmp_path_factory.mktemp("suites") / "local")


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, str]:
    """Random models with the architectures of GPT-2 and Falcon."""
    from transformers import (
        FalconConfig,
        FalconForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    root = tmp_path_factory.mktemp("families")
    ends: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 2}
    torch.manual_seed(0)
    made = {
        "gpt2": GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB_SIZE, n_positions=1024, n_embd=32, n_layer=2, n_head=4, **ends
            )
        ),
        "falcon": FalconForCausalLM(
            FalconConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=1024,
                multi_query=True,
                parallel_attn=True,
                **ends,
            )
        ),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        # Like the originals, one token is used before, after and between texts.
        PreTrainedTokenizerFast(
            tokenizer_object=byte_tokenizer(), bos_token="</s>", eos_token="</s>"
        ).save_pretrained(root / name)
    return {name: str(root / name) for name in made}


@pytest.fixture(scope="module")
def results(families, suites, tmp_path_factory) -> dict[str, Path]:
    """Result files by suite."""
    folder = tmp_path_factory.mktemp("results")
    for suite in RUN:
        harness.lm_eval(
            LmEvalConfig(
                models=families,
                tasks=suite,
                task_folder=str(suites),
                out=str(folder / f"{suite}.json"),
                limit=LIMIT,
                dtype="float32",
            )
        )
    return {suite: folder / f"{suite}.json" for suite in RUN}


@pytest.mark.slow
@pytest.mark.parametrize("suite", RUN)
def test_suites_run_on_other_model_families(results, suite):
    content = load_results(results[suite])
    assert list(content["models"]) == ["gpt2", "falcon"]
    for model in content["models"].values():
        for choice in suite_choices(suite):
            entry = model["tasks"][choice.task]
            if choice.task not in ("mmlu", "bbh_cot_fewshot"):  # groups: their parts say it
                assert entry["num_fewshot"] == choice.num_fewshot
                assert entry["samples"] == LIMIT
    (table,) = suite_tables(content)
    gpt2, falcon, *others = table.rows
    assert (gpt2.model, falcon.model) == ("gpt2", "falcon")
    assert all(score is not None for row in table.rows for score in row.scores)
    assert gpt2.average == pytest.approx(statistics.fmean(s for s in gpt2.scores if s is not None))
    assert [row.model for row in others] == [row.model for row in published_rows(suite)]
    assert render_suite(table).row_count == len(table.rows)


@pytest.mark.parametrize(
    ("suite", "model", "source", "average"),
    [
        ("open_llm_v1", "Danube 1.8B", "table 2", 39.21),
        ("open_llm_v1", "Danube2 1.8B", "table 6", 48.72),
        ("open_llm_v1", "TinyLlama 1.1B", "table 2", 36.42),
        ("open_llm_v1", "Danube 1.8B Chat", "table 5", 43.96),
        ("danube3_academic", "Danube3 4B Chat", "table 2", 68.98),
        ("danube3_academic", "Phi-3-mini", "table 2", 76.01),
        ("danube3_academic", "Danube3 500M Chat", "table 3", 48.25),
    ],
)
def test_published_rows_have_the_averages_that_the_reports_print(suite, model, source, average):
    (row,) = [r for r in published_rows(suite) if r.model == model and source in str(r.source)]
    assert row.average == pytest.approx(average, abs=0.011)


def test_every_published_table_has_a_suite_or_columns():
    counts = {suite: len(published_rows(suite)) for suite in known_suites()}
    assert counts == {"danube_zero_shot": 15, "open_llm_v1": 21, "danube3_academic": 7}
    assert "https://arxiv.org/abs/2401.16818" in str(published_rows("danube_zero_shot")[0].source)
    others = [content for content in published_files() if "suite" not in content]
    assert len(others) == 5
    for content in others:
        assert {len(scores) for scores in content["models"].values()} == {len(content["columns"])}


def test_a_model_with_only_an_average():
    (row,) = [row for row in published_rows("open_llm_v1") if row.model == "Qwen 1.8B Chat"]
    assert row.average == 42.94
    assert set(row.scores) == {None}


def test_published_tables_are_printed(capsys):
    print_published(PublishedConfig())
    text = capsys.readouterr().out
    assert "Danube3 4B Chat [1]" in text  # of a suite
    assert "MT-Bench without coding" in text
    assert text.count("https://arxiv.org") == 12
    print_published(PublishedConfig(suite="danube3_academic"))
    assert "MT-Bench" not in capsys.readouterr().out


def test_the_leaderboard_is_a_part_of_the_academic_suite():
    assert set(suite_choices("open_llm_v1")) < set(suite_choices("danube3_academic"))


def test_other_numbers_of_shots_are_not_a_suite(suites):
    config = LmEvalConfig(
        models={"m": "x"}, tasks="open_llm_v1", task_folder=str(suites), num_fewshot=1, out="out"
    )
    assert select(config).suites == []


def test_a_task_with_two_numbers_of_shots_is_refused():
    config = LmEvalConfig(models={"m": "x"}, tasks=["danube_zero_shot", "open_llm_v1"], out="out")
    with pytest.raises(InputError, match="arc_challenge: the selected suites use 0 and 25"):
        select(config)


def test_compare_prints_and_writes(results, tmp_path, capsys):
    out = tmp_path / "compare.json"
    compare(CompareConfig([str(results["danube_zero_shot"])], out=str(out)))
    shown = capsys.readouterr().out
    assert "difference to gpt2 ± standard error" in shown
    assert "Danube 1.8B" in shown
    found = json.loads(out.read_text())
    assert found["baseline"] == "gpt2"
    assert {one["model"] for one in found["differences"]} == {"falcon"}
    hellaswag = next(one for one in found["differences"] if one["task"] == "hellaswag")
    assert hellaswag["paired"]


def test_differences_are_taken_sample_by_sample():
    def entry(each: str, digest: str = "d") -> dict:
        share = each.count("1") / len(each)
        score = {"value": share, "stderr": 0.1}
        return {
            "metrics": {"acc": score},
            "each": {"acc": each},
            "samples_sha256": digest,
            "shown": None,
            "chance": 0.25,
        }

    def both(one: dict, other: dict) -> list:
        models = {"a": {"tasks": {"t": one}}, "b": {"tasks": {"t": other}}}
        return differences({"models": models}, "a")

    (found,) = both(entry("1100110011"), entry("1100110000"))
    assert found.value == pytest.approx(-0.2)
    assert found.paired
    # Of -1, -1 and eight times 0.
    apart = [-1, -1, *[0] * 8]
    assert found.stderr == pytest.approx(statistics.stdev(apart) / 10**0.5)
    (found,) = both(entry("1100110011"), entry("1100110000", "other samples"))
    assert not found.paired
    assert found.stderr == pytest.approx(0.02**0.5)
    assert not found.is_significant
    (found,) = both(entry("1" * 10), entry("0" * 10))
    assert found.is_significant
    assert paired_stderr({"each": {}}, {"each": {}}, "acc") is None


def test_results_of_two_files_are_merged(results, tmp_path):
    one, other = results["danube3_academic"], results["danube_zero_shot"]
    both = merge_results([one, other])
    assert list(both["models"]) == [
        "gpt2",
        "falcon",
        "danube_zero_shot/gpt2",
        "danube_zero_shot/falcon",
    ]
    # The same weights on other tasks are one model.
    cut = json.loads(other.read_text())
    for model in cut["models"].values():
        model["tasks"] = {"boolq": model["tasks"]["boolq"]}
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    together = merge_results([one, tmp_path / "cut.json"])
    assert list(together["models"]) == ["gpt2", "falcon"]
    assert together["models"]["gpt2"]["settings"]["suites"] == RUN[::-1]


def test_compare_names_missing_models_and_files(results, tmp_path):
    path = str(results["danube3_academic"])
    with pytest.raises(
        InputError,
        match=r"baseline=gpt: the results have no model of this name \(did you mean 'gpt2'",
    ):
        compare(CompareConfig([path], baseline="gpt"))
    with pytest.raises(InputError, match=r"results=\[\]: expected at least one file"):
        compare(CompareConfig([]))


@pytest.mark.slow
def test_a_data_set_that_cannot_be_downloaded_is_named(tmp_path):
    """A local task file that reads a Hub data set; the error says how to get it."""
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: owner/rows\ndataset_name: hard\noutput_type: multiple_choice\n"
        "test_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: 0\ndoc_to_choice: '{{c}}'\n"
    )
    with pytest.raises(InputError) as caught:
        fetch(FetchConfig(tasks=str(tmp_path)))
    said = str(caught.value)
    assert "tasks=mine: the task's data set owner/rows hard is not in this machine's cache" in said
    assert "Run python -m eval fetch tasks=mine on a machine with a network" in said
    assert "HF_HOME" in said


def test_squad_scores():
    """The rules are those of the official script; CoQA's F1 uses them."""
    assert squad_metrics.compute_exact("The river.", "river") == 1
    assert squad_metrics.compute_exact("river", "rivers") == 0
    # Two of three words found, two of two wanted.
    assert squad_metrics.compute_f1("green river", "a long green river") == pytest.approx(0.8)
    assert squad_metrics.compute_f1("river", "stone") == 0
    assert squad_metrics.compute_f1("the", "a") == 1
    assert squad_metrics.compute_f1("river", "the") == 0


def test_scores_go_to_wandb(results, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    content = load_results(results["danube_zero_shot"])
    config = LmEvalConfig(
        models={"m": "x"},
        out=str(tmp_path / "scores.json"),
        logger=LoggerConfig(wandb="offline", project="tests"),
    )
    harness.log_scores(config, content)
    wandb.teardown()  # a run's end returns before its file is whole
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert b"eval/gpt2/piqa/acc_norm" in next(run.glob("*.wandb")).read_bytes()
