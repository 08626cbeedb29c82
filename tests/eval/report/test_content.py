"""The content of the report: numbers, tables, charts and sentences, before they are rendered."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest
from omegaconf import OmegaConf

from conf.errors import InputError
from tests.eval.report.conftest import CONFIG, event, validation, write_metrics


def titles(charts: list[Any]) -> list[str]:
    return [chart.title for chart in charts]


def legend(chart: Any) -> list[str]:
    return [name for name, _, _ in chart.legend]


def cards(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {card["label"]: (card["value"], card["note"]) for card in found["cards"]}


def test_training(content):
    found = content()
    assert found["state"] == "finished"
    assert cards(found)["validation loss"] == ("2.125", "nats per token, from 5.500")
    assert cards(found)["throughput"] == ("12.3k", "tokens/s, median; MFU 42%")
    assert cards(found)["time in steps"] == ("1 min 30 s", "2 processes on cpu")
    assert titles(found["charts"]) == [
        *("Loss", "Throughput", "MFU", "Learning rate", "Gradient norm")
    ]
    loss = found["charts"][0]
    assert legend(loss)[2:] == ["validation, code", "validation, prose"]
    assert "long: sequences of 64" in loss.wide
    assert "restart" in loss.wide
    assert found["pace"][0] == "Steps waited for data 2.0% of their time."
    assert len(found["pace"]) == 2


def test_stages(content):
    short, long = content()["stages"]
    assert (short["name"], short["steps"], short["loss"]) == ("short", "20", "3.000")
    assert short["mixture"] == "code 75%, prose 25%"
    assert [share for share, _ in short["shares"]] == ["75.00", "25.00"]
    assert (long["mixture"], long["shares"]) == ("by size", [])


def test_positions_are_those_of_stages_and_layers(content, run):
    config = OmegaConf.load(run / "config.yaml")
    yarn = {"type": "yarn", "factor": 4.0, "original_max_seq_len": 32}
    config.recipe.stages.long.rope_scaling = yarn
    config.model.architecture = "smollm3"
    config.model.rope_pattern = "RN"
    OmegaConf.save(config, run / "config.yaml")
    found = content()
    short, long = found["stages"]
    assert (short["rope_theta"], long["rope_theta"]) == (
        "10,000",
        "10,000, yarn scaling by 4 from 32 positions",
    )
    assert "no positions in 1 of 2 layers" in found["summary"]


def test_impossible_mfu_is_explained(content, run, lines):
    write_metrics(run, [line | {"mfu": 1.2} if line.get("step") == 3 else line for line in lines])
    assert content()["pace"][2].startswith("MFU is above 100% in 1 of 30 steps")


def test_the_average_of_the_weights_is_shown(content, run, lines):
    averaged = [
        line | {"ema": {"loss": 2.0625}} if line["kind"] == "validation" else line for line in lines
    ]
    write_metrics(run, averaged)
    note = "nats per token, from 5.500; average of the weights 2.062"
    assert cards(content())["validation loss"] == ("2.125", note)


def test_scores_during_training_are_drawn(content, run, lines):
    scores = [
        {"which": {"acc": 0.25 + step / 100, "acc_mutual_info": 0.5}, "text": {"bits_per_byte": 2}}
        for step in (10, 30)
    ]
    scored: list[dict[str, Any]] = [
        {"kind": "eval", "step": step, "tokens": 100 * step, "tasks": tasks, "seconds": 1}
        for step, tasks in zip((10, 30), scores, strict=True)
    ]
    write_metrics(run, [*lines, *scored])
    assert [chart.unit for chart in content()["charts"][5:]] == [
        "correct answers: which, acc mutual info",
        "bits per byte: text, bits per byte",
    ]
    more = [line | {"tasks": {**line["tasks"], "who": {"acc": 0.5}}} for line in scored]
    write_metrics(run, [*lines, *more])
    charts = content()["charts"][5:]
    assert titles(charts) == ["Scores while training"] * 2
    assert legend(charts[0]) == ["which, acc mutual info", "who, acc"]


def test_energy(content, run, lines):
    assert dict(content()["cost"])["energy"].startswith("unknown: no readable energy counter")
    measured = [
        event("energy", 15, gpu_joules=3.6e6, cpu_joules=1.8e6, seconds=1000),
        event("energy", 30, gpu_joules=7.2e6, seconds=2000),
    ]
    write_metrics(run, [*lines, *measured])
    found = content(others={"twin": str(run)})
    energy = dict(found["cost"])["energy"]
    assert "3 kWh by GPUs, 3,600 W on average; 0.5 kWh by CPU packages, 1,800 W" in energy
    assert "(measured over 50 min 0 s)" in energy
    assert dict(found["comparison"]["figures"])["energy"] == [energy, energy]


def test_a_cpu_with_a_name_is_not_a_gpu(content, run):
    """platform.processor() is x86_64 on some systems, empty on others."""
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"device": "x86_64", "device_type": "cpu"}))
    assert content()["cost"][0][0] == "CPU process-hours in steps"


def test_consumed_data(content, corpus):
    rows = {row["source"]: row for row in content()["data"]}
    tokens = corpus.source_tokens("train")
    for source, share in (("code", 75), ("prose", 25)):
        assert rows[source]["tokens"] == f"{tokens[source]:,}"
        assert rows[source]["seen"] == f"{30 * share:,}"
        assert rows[source]["epochs"] == f"{30 * share / tokens[source]:.2f}"


def test_lineage(content, corpus, run):
    found = content()
    lineage = dict(found["lineage"])
    assert lineage["code"] == "commit c0ffee, with local changes"
    assert corpus.fingerprint in lineage["data"]
    assert corpus.tokenizer["sha256"] in lineage["tokenizer"]
    assert (lineage["restarts"], lineage["checkpoints"]) == ("at step 15", "step_30")
    assert found["config"] == CONFIG
    assert found["shards"] == [
        (entry["file"], f"{entry['tokens']:,}", entry["sha256"])
        for split in corpus.splits.values()
        for entries in split.values()
        for entry in entries
    ]
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"data_fingerprint": "0ld"}))
    assert "has changed since" in dict(content()["lineage"])["data now"]


def test_models_side_by_side(content, results):
    found = content(results=str(results))
    which, text = found["evaluation"]["rows"]
    assert [(cell["value"], cell["stderr"], cell["best"]) for cell in which["cells"]] == [
        ("24.0%", "3.1", False),
        ("61.0%", "3.1", True),
    ]
    assert [cell["best"] for cell in text["cells"]] == [False, True]  # 1.25 bits against 3.5
    assert (which["chance"], text["lower"]) == ("25%", True)
    assert cards(found)["which"] == ("61.0%", "± 3.1, pretrained; random guessing: 25%")


def test_published_models_follow_ours(content, suite_results):
    (suite,) = content(results=str(suite_results))["suites"]
    assert suite["name"] == "open_llm_v1"
    rows = {(row["model"], row["source"]): row for row in suite["rows"]}
    assert [row["model"] for row in suite["rows"]][:2] == ["untrained", "pretrained"]
    assert rows["pretrained", None]["cells"][0] == ("43.21", "1.1")
    assert "table 6, https://arxiv.org/abs/2401.16818" in suite["sources"][2]
    assert rows["Danube2 1.8B", 3]["average"] == "48.72"
    assert rows["Danube 1.8B", 1]["cells"][0] == ("39.68", None)


@pytest.mark.parametrize(("factor", "agrees"), [(1.002, True), (1.02, False)])
def test_an_export_is_compared_with_the_trainer(content, tmp_path, factor, agrees):
    path = tmp_path / "perplexity.json"
    path.write_text(json.dumps(validation(30, 2.125 * factor)))
    agreement = content(perplexity=str(path))["agreement"]
    assert f"a difference of {factor - 1:.2%}" in agreement["text"]
    assert agreement["agrees"] is agrees


def test_losses_on_different_samples_are_not_compared(content, tmp_path):
    path = tmp_path / "perplexity.json"
    found = validation(30, 2.125)
    found["sources"]["code"]["tokens"] += 1
    path.write_text(json.dumps(found))
    agreement = content(perplexity=str(path))["agreement"]
    assert "on different samples than the trainer's loss of 2.1250" in agreement["text"]
    assert "a difference" not in agreement["text"]
    assert not agreement["agrees"]


def test_samples_are_matched_by_line(content, tmp_path):
    files = {}
    for name in ("before", "after"):
        rows = [{"prompt": f"p{n}", "generated": f"{name} {n} \n"} for n in range(3)]
        rows[0]["reference"] = "truth"
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    assert content(samples=files, max_samples=2)["samples"] == [
        {
            "prompt": f"p{number}",
            "reference": "truth" if number == 0 else None,
            "answers": [("before", f"before {number}"), ("after", f"after {number}")],
        }
        for number in range(2)
    ]


def test_samples_in_the_run_folder(content, run):
    (run / "samples").mkdir()
    for name, words in (("step_20", "older words"), ("step_30", "newer words")):
        path = run / "samples" / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": "p", "generated": words}) + "\n")
        os.utime(path, (int(name[-2:]), int(name[-2:])))
    (sample,) = content()["samples"]
    assert sample["answers"] == [("step_20", "older words"), ("step_30", "newer words")]
    (sample,) = content(samples={"mine": str(path)})["samples"]  # replaces them
    assert sample["answers"] == [("mine", "newer words")]


def test_tuning(content, tuned):
    found = content(tuned=tuned)
    assert found["tuned"] == "Tuned by SFT on 321 conversations. Tuned by DPO on 45 pairs."
    answers, chat = found["tuning"]
    facts = dict(answers["facts"])
    assert facts["loss"] == "4.500 to 3.250 nats per answer token"
    assert facts["validation loss"] == "4.600 to 3.350 nats per answer token"
    assert titles(answers["charts"]) == ["Loss", "Learning rate"]
    facts = dict(chat["facts"])
    assert chat["title"] == "chat: DPO"
    assert facts["method"] == "direct preference optimization"
    assert facts["tuned from"] == "answers"
    assert facts["beta"] == "0.2"
    assert facts["adapters"] == "LoRA, rank 4, alpha 16, merged"
    assert facts["learning rate"] == "1e-5, cosine"
    assert facts["loss"] == "0.693 to 0.500 nats per pair"
    assert facts["reward accuracy"] == "42% to 80%"
    assert facts["reward margin"] == "0.010 to 0.200"
    assert facts["validation reward accuracy"] == "50% to 90%"
    assert titles(chat["charts"]) == ["Loss", "Learning rate", "Reward accuracy", "Reward margin"]
    lines = ["train", "validation"]
    assert [legend(chart) for chart in chat["charts"]] == [lines, [], lines, lines]
    lineage = dict(found["lineage"])
    assert lineage["tuning answers"] == "inputs 1nputs"
    assert lineage["tuning chat"] == "inputs 0ther"


def test_a_run_that_started_from_a_model(content, run):
    assert "trained from scratch on 3,000 tokens" in content()["summary"]
    config = OmegaConf.load(run / "config.yaml")
    config.init_from = "models/mistral"
    OmegaConf.save(config, run / "config.yaml")
    assert "continued from mistral on 3,000 tokens" in content()["summary"]
    assert dict(content()["lineage"])["continued from"] == "mistral"
    (run / "init_from").mkdir()
    (run / "init_from" / "origin.json").write_text('{"name": "owner/mistral", "card": {}}')
    assert "continued from owner/mistral on" in content()["summary"]


def test_run_in_progress(content, run, lines):
    write_metrics(run, lines[:9])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "trai')  # an incomplete line
    assert content()["state"] == "in progress, step 6"


def test_incidents_and_cost(content, run, lines):
    for line in lines:
        line["time"] = 1000.0 + 4 * line["step"]
        if line["kind"] == "train" and line["step"] in (7, 9):
            line["skipped"] = "spike"
    more = [
        event("rewind", 18, to_step=15, cause="3 bad steps in a row", time=1080.0),
        event("checkpoint", 20, held_seconds=1.5, bytes=3 * 10**9, time=1080.0),
    ]
    write_metrics(run, sorted(lines + more, key=lambda line: line["step"]))
    found = content()
    assert found["incidents"] == [
        "Restarted once, at step 15.",
        "Skipped steps 7, 9.",
        "Rewound from step 18 to 15: 3 bad steps in a row.",
    ]
    assert found["charts"][0].wide.count(">skipped<") == 2
    cost = dict(found["cost"])
    # 90 seconds of 2 processes are 0.05 hours, for 3000 tokens.
    assert cost["CPU process-hours in steps"] == "0.05 (1 min 30 s x 2)"
    assert cost["tokens per CPU process-hour"] == "60,000"
    assert cost["first to last log line"] == "2 min 0 s"
    assert cost["checkpoints"] == "1, 3.00 GB; training stalled for 1.5 s"


def test_runs_side_by_side(content, run, lines, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "config.yaml").write_text(CONFIG.replace("seed: 7", "seed: 8"))
    write_metrics(other, [line for line in lines if line["step"] <= 12])
    found = content(others={"other": str(other)})["comparison"]
    assert found["names"] == ["river", "other"]
    assert found["settings"] == [("seed", ["7", "8"])]
    figures = dict(found["figures"])
    assert figures["tokens"] == ["3,000", "1,200"]
    assert figures["state"] == ["finished", "in progress, step 12"]
    assert titles(found["charts"]) == ["Training loss", "Validation loss"]
    with pytest.raises(InputError, match=r"others\.x=nowhere: config\.yaml is missing"):
        content(others={"x": "nowhere"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "nowhere"}, r"run=nowhere: config\.yaml is missing"),
        ({"corpus": "nowhere"}, r"nowhere/manifest\.json does not exist"),
        ({"results": "nowhere"}, "results=nowhere: the file does not exist"),
        ({"perplexity": "nowhere"}, "perplexity=nowhere: the file does not exist"),
        (
            {"tuned": {"x": "nowhere"}},
            r"tuned\.x=nowhere: expected a folder with metrics\.jsonl and one of sft\.json, dpo",
        ),
        ({"samples": {"mine": "nowhere"}}, r"samples\.mine=nowhere: the file does not exist"),
        ({"max_samples": -1}, "max_samples=-1"),
    ],
)
def test_missing_inputs_are_named(content, settings, message):
    with pytest.raises(InputError, match=message):
        content(**settings)


def test_samples_of_another_kind_are_refused(content, tmp_path):
    path = tmp_path / "samples.jsonl"
    for row in ('{"text": "a"}', '{"prompt": "a", "generated": "\\ud83d"}'):
        path.write_text(row + "\n")
        with pytest.raises(InputError, match="a row lacks 'prompt' or 'generated'"):
            content(samples={"mine": str(path)})


def test_run_without_a_step_is_refused(content, run, lines):
    write_metrics(run, lines[:2])
    with pytest.raises(InputError, match="has no training step yet"):
        content()


def test_one_step_is_enough(content, run, lines):
    write_metrics(run, [line for line in lines if line["kind"] == "train"][:1])
    found = content()
    assert (found["evaluation"], found["samples"], found["comparison"]) == (None, [], None)
