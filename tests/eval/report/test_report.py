"""The report: what its files say is on the page, whole and offline."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from conf.errors import InputError
from eval.report.command import report
from eval.report.config import ReportConfig
from eval.tasks.suites import suite_choices
from tests import browser

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open; collects the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


CONFIG = """
name: river
seed: 7
model: {name: tiny, architecture: mistral, vocab_size: 259, hidden_size: 32, intermediate_size: 48,
  num_layers: 2, num_heads: 4, num_kv_heads: 2, max_seq_len: 64, sliding_window: 24}
recipe:
  name: two
  global_batch_tokens: 100
  stages:
    short: {seq_len: 32, tokens: 2000, mixture: {code: 3.0, prose: 1.0}}
    long: {seq_len: 64, tokens: 1000, mixture: {}}
"""


def event(name: str, step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "event", "event": name, "step": step, "tokens": 100 * step, **more}


def validation(step: int, loss: float) -> dict[str, Any]:
    sources = {
        name: {"loss": loss + shift, "bits_per_byte": loss / 2 + shift, "tokens": 50}
        for name, shift in (("code", 0.0), ("prose", 0.5))
    }
    line = {"kind": "validation", "step": step, "tokens": 100 * step, "loss": loss}
    return {**line, "sources": sources}


def train(step: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "tokens": 100 * step,
        "stage": "short" if step <= 20 else "long",
        "seq_len": 32,
        "loss": 5 - step / 10,
        "grad_norm": 1.5,
        "learning_rate": 0.001,
        "tokens_per_second": 12345.0,
        "mfu": 0.42,
        "step_seconds": 3.0,
        "data_wait_seconds": 0.06,
        "consumed_tokens": {"code": 75 * step, "prose": 25 * step},
    }


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """A run of 30 steps in two stages, with a restart."""
    return [
        validation(0, 5.5),
        event("start", 0),
        event("stage", 0, stage="short", seq_len=32),
        *(train(step) for step in range(1, 16)),
        event("resume", 15),
        *(train(step) for step in range(16, 21)),
        event("stage", 20, stage="long", seq_len=64),
        *(train(step) for step in range(21, 31)),
        validation(30, 2.125),
        event("finish", 30),
    ]


@pytest.fixture
def run(corpus, lines, tmp_path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step_30").mkdir(parents=True)
    (folder / "checkpoints" / "step_5.tmp").mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    env = {
        "git_commit": "c0ffee",
        "git_dirty": True,
        "python": "3.11",
        "packages": {"torch": "2.13.0"},
        "platform": "Linux",
        "device": "cpu",
        "threads": 1,
        "world_size": 2,
        "data": str(corpus.folder),
        "data_fingerprint": corpus.fingerprint,
        "tokenizer_fingerprint": corpus.tokenizer["sha256"],
        "order_fingerprint": "0rder",
    }
    (folder / "env.json").write_text(json.dumps(env))
    write_metrics(folder, lines)
    return folder


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def page(run, tmp_path):
    def page(**settings: Any) -> tuple[str, Balanced]:
        out = tmp_path / "pages" / "report.html"
        config = ReportConfig(run=str(run), out=str(out), overwrite=True)
        report(dataclasses.replace(config, **settings))
        text = out.read_text()
        return text, Balanced(text)

    return page


@pytest.fixture
def results(tmp_path) -> Path:
    def scored(accuracy: float, bits: float) -> dict[str, Any]:
        common = {"samples": 40, "num_fewshot": 0, "version": 1.0, "shown": None, "group": None}
        choice = {"metrics": {"acc": {"value": accuracy, "stderr": 0.031}}, "chance": 0.25}
        text = {"metrics": {"bits_per_byte": {"value": bits, "stderr": None}}, "chance": None}
        return {
            "folder": "x",
            "fingerprint": "f00d",
            "seconds": 1.0,
            "settings": {"limit": None, "chat": False, "dtype": "auto"},
            "tasks": {"which": {**common, **choice}, "text": {**common, **text}},
        }

    models = {"untrained": scored(0.24, 3.5), "pretrained": scored(0.61, 1.25)}
    path = tmp_path / "results.json"
    content = {"format": 1, "packages": {"lm_eval": "0.4.13"}, "models": models}
    path.write_text(json.dumps(content))
    return path


def test_page_needs_no_network(page, results):
    text, parsed = page(results=str(results))
    assert not re.search(r"https?://|//[a-z]|@import|url\(|<script", text)
    assert parsed.addresses
    assert all(address.startswith("#") for address in parsed.addresses)
    for address in parsed.addresses:
        assert f'id="{address[1:]}"' in text


def test_training_is_told(page):
    text, parsed = page()
    assert "2.125" in parsed.text
    assert "from 5.500" in parsed.text
    assert "12.3k" in parsed.text
    assert "MFU 42%" in parsed.text
    assert "1 min 30 s" in parsed.text  # 30 steps of 3 seconds
    assert "long: sequences of 64" in parsed.text
    assert "restart" in parsed.text
    assert "code 75%, prose 25%" in parsed.text
    assert "width:75.00%" in text
    assert "by size" in parsed.text
    assert "waited for data 2.0% of their time" in parsed.text
    assert "MFU is above 100%" not in parsed.text
    assert "finished" in parsed.text
    assert text.count("<svg") == 10  # five charts, each for a wide and a narrow page


def test_mfu_that_cannot_be_is_explained(page, run, lines):
    write_metrics(run, [line | {"mfu": 1.2} if line.get("step") == 3 else line for line in lines])
    _, parsed = page()
    assert "MFU is above 100% in 1 of 30 steps" in parsed.text


def test_scores_while_training_are_drawn(page, run, lines):
    text, _ = page()
    assert "Scores while training" not in text
    scores = [
        {"which": {"acc": 0.25 + step / 100, "acc_mutual_info": 0.5}, "text": {"bits_per_byte": 2}}
        for step in (10, 30)
    ]
    scored: list[dict[str, Any]] = [
        {"kind": "eval", "step": step, "tokens": 100 * step, "tasks": tasks, "seconds": 1}
        for step, tasks in zip((10, 30), scores, strict=True)
    ]
    write_metrics(run, [*lines, *scored])
    text, parsed = page()
    assert "correct answers: which, acc mutual info" in parsed.text
    assert "bits per byte: text, bits per byte" in parsed.text
    assert text.count("<svg") == 14
    more = [line | {"tasks": {**line["tasks"], "who": {"acc": 0.5}}} for line in scored]
    write_metrics(run, [*lines, *more])
    text, parsed = page()
    assert "who, acc" in parsed.text
    assert text.count("<svg") == 14


def test_energy_is_told_where_it_is_known(page, run, lines):
    _, parsed = page()
    assert "unknown: no readable energy counter" in parsed.text
    counted = [
        event("energy", 15, gpu_joules=3.6e6, cpu_joules=1.8e6, seconds=1000),
        event("energy", 30, gpu_joules=7.2e6, seconds=2000),
    ]
    write_metrics(run, [*lines, *counted])
    _, parsed = page(others={"twin": str(run)})
    assert "3 kWh by GPUs, 3,600 W on average; 0.5 kWh by CPU packages, 1,800 W" in parsed.text
    assert "(measured over 50 min 0 s)" in parsed.text
    assert parsed.text.count("3 kWh by GPUs") == 3  # its cost, and that of both side by side


def test_a_cpu_that_has_a_name_is_no_gpu(page, run):
    """platform.processor() is x86_64 on some systems, empty on others."""
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"device": "x86_64", "device_type": "cpu"}))
    _, parsed = page()
    assert "CPU process-hours" in parsed.text
    assert "GPU-hours" not in parsed.text


def test_data_is_what_was_really_consumed(page, corpus):
    _, parsed = page()
    tokens = corpus.source_tokens("train")
    for source, share in (("code", 75), ("prose", 25)):
        assert f"{tokens[source]:,}" in parsed.text
        assert f"{30 * share:,}" in parsed.text
        assert f"{30 * share / tokens[source]:.2f}" in parsed.text


def test_lineage(page, corpus):
    _, parsed = page()
    assert "c0ffee, with local changes" in parsed.text
    assert corpus.fingerprint in parsed.text
    assert corpus.tokenizer["sha256"] in parsed.text
    assert "at step 15" in parsed.text
    assert "step_30" in parsed.text
    assert "step_5" not in parsed.text
    assert "recipe:" in parsed.text


def test_models_side_by_side(page, results):
    text, parsed = page(results=str(results))
    assert "61.0% ± 3.1" in parsed.text
    assert "24.0% ± 3.1" in parsed.text
    assert "random guessing: 25%" in parsed.text
    bold = re.findall(r'class="n best">([^<]+)<', text)
    assert [value.strip() for value in bold] == ["61.0%", "1.250"]  # less is better in bits


def test_export_against_the_trainer(page, tmp_path):
    path = tmp_path / "perplexity.json"
    path.write_text(json.dumps(validation(30, 2.125 * 1.002)))
    text, parsed = page(perplexity=str(path))
    assert "a difference of 0.20%" in parsed.text
    assert 'class="check agrees"' in text


def test_export_that_differs_is_not_praised(page, tmp_path):
    path = tmp_path / "perplexity.json"
    path.write_text(json.dumps(validation(30, 2.125 * 1.02)))
    text, parsed = page(perplexity=str(path))
    assert "a difference of 2.00%" in parsed.text
    assert "check agrees" not in text


def test_losses_of_other_samples_are_not_compared(page, tmp_path):
    path = tmp_path / "perplexity.json"
    found = validation(30, 2.125)
    found["sources"]["code"]["tokens"] += 1
    path.write_text(json.dumps(found))
    text, parsed = page(perplexity=str(path))
    assert "on different samples than the trainer's loss of 2.1250" in parsed.text
    assert "difference" not in parsed.text
    assert "check agrees" not in text


def test_samples_are_matched_and_escaped(page, tmp_path):
    files = {}
    for name, answer in (("before", "<b>x</b> & y"), ("after", "fine")):
        rows = [{"prompt": f"p{n}", "generated": f"{answer} {n}"} for n in range(3)]
        rows[0]["reference"] = "truth"
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    text, parsed = page(samples=files, max_samples=2)
    assert "<b>x</b>" not in text
    assert "<b>x</b> & y 0" in parsed.text
    assert "fine 1" in parsed.text
    assert "fine 2" not in parsed.text
    assert "truth" in parsed.text


def test_samples_in_the_run_folder_are_shown(page, run, tmp_path):
    (run / "samples").mkdir()
    for name, words in (("step_20", "older words"), ("step_30", "newer words")):
        path = run / "samples" / f"{name}.jsonl"
        path.write_text(json.dumps({"prompt": "p", "generated": words}) + "\n")
        os.utime(path, (int(name[-2:]), int(name[-2:])))
    _, parsed = page()
    assert parsed.text.index("older words") < parsed.text.index("newer words")
    _, parsed = page(samples={"mine": str(path)})  # what is named takes their place
    assert "older words" not in parsed.text


def test_blank_answer_is_said(page, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"prompt": "p", "generated": "\n" * 40}) + "\n")
    _, parsed = page(samples={"mine": str(path)})
    assert "no text" in parsed.text


@pytest.fixture
def tuned(model, tmp_path) -> dict[str, str]:
    """Folders as finetune leaves them: SFT, then DPO of its result, with a validation."""
    record = {
        "inputs": "1nputs",
        "rows": 321,
        "model": "runs/river/pretrained",
        "data": "pairs.jsonl",
        "data_sha256": "ab" * 32,
        "chat_template": "danube",
        "steps": 20,
        "tokens": 900,
        "first_loss": 4.5,
        "loss": 3.25,
        "seconds": 61.0,
        "precision": "fp32",
        "learning_rate": 1e-5,
        "schedule": "cosine",
    }
    compared: dict[str, Any] = {
        "beta": 0.2,
        "lora_rank": 4,
        "lora_alpha": 16,
        "first_loss": 0.693,
        "loss": 0.5,
    }
    compared |= {"rows": 45, "inputs": "0ther", "model": "runs/river/answers"}
    folders = {}
    for name, file, content in (
        ("answers", "sft.json", record),
        ("chat", "dpo.json", record | compared),
    ):
        folder = tmp_path / name
        shutil.copytree(model, folder)
        (folder / file).write_text(json.dumps(content))
        rewards = file == "dpo.json"
        lines = [tuning_line("validation", 0, 0.1, rewards)]
        lines += [tuning_line("train", n, 0.0, rewards) for n in range(1, 21)]
        lines += [tuning_line("validation", n, 0.1, rewards) for n in (10, 20)]
        write_metrics(folder, lines)
        folders[name] = str(folder)
    return folders


def tuning_line(kind: str, step: int, shift: float, rewards: bool) -> dict[str, Any]:
    line = {"kind": kind, "step": step, "loss": 4.5 + shift - step / 16}
    if kind == "train":
        line["learning_rate"] = 1e-5 * (1 - step / 20)
    if rewards:
        line |= {"reward_accuracy": (40 + 2 * step) / 100 + shift, "reward_margin": step / 100}
    return line


def test_tuning(page, tuned):
    text, parsed = page(tuned=tuned)
    assert "Tuned by SFT on 321 conversations. Tuned by DPO on 45 pairs." in parsed.text
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>", text[: text.index("LoRA")]))
    assert facts["loss"] == "4.500 to 3.250 nats per answer token"
    assert facts["validation loss"] == "4.600 to 3.350 nats per answer token"
    after = text[text.index(">chat: DPO<") :]
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>", after))
    assert facts["method"] == "direct preference optimization"
    assert facts["tuned from"] == "answers"
    assert facts["beta"] == "0.2"
    assert facts["adapters"] == "LoRA, rank 4, alpha 16, merged"
    assert facts["learning rate"] == "1e-5, cosine"
    assert facts["loss"] == "0.693 to 0.500 nats per pair"
    assert facts["reward accuracy"] == "42% to 80%"
    assert facts["reward margin"] == "0.010 to 0.200"
    assert facts["validation reward accuracy"] == "50% to 90%"
    assert (facts["tuning answers"], facts["tuning chat"]) == ("inputs 1nputs", "inputs 0ther")
    assert text.count("<svg") == 10 + 2 * (2 + 4)  # two of SFT, four of DPO, in two widths
    named = re.findall(r"<figcaption><b>([^<]+)</b>", after)
    assert named == ["Loss", "Learning rate", "Reward accuracy", "Reward margin"]
    assert after.count("</i>validation</li>") == 3  # not where there is none


def test_tuned_models_have_a_card(page, tuned):
    page(tuned=tuned, card=tuned["chat"])
    card = (Path(tuned["chat"]) / "README.md").read_text()
    assert "Tuned by SFT on 321 conversations. Tuned by DPO on 45 pairs." in card
    assert "| adapters | LoRA, rank 4, alpha 16, merged |" in card
    assert card.index("## answers: SFT") < card.index("## chat: DPO")
    page(tuned=tuned, card=tuned["answers"])
    card = (Path(tuned["answers"]) / "README.md").read_text()
    assert "321 conversations" in card
    assert "DPO" not in card  # came after it
    with pytest.raises(InputError, match=r"a tuned model, but the report lacks its stage .*chat"):
        page(card=tuned["chat"])


def test_a_card_tells_of_all_that_led_to_its_model_and_of_nothing_else(page, tuned, model, run):
    chat, answers = Path(tuned["chat"]), Path(tuned["answers"])
    record = json.loads((chat / "dpo.json").read_text())
    (chat / "dpo.json").write_text(json.dumps(record | {"model": str(answers)}))
    with pytest.raises(InputError, match=r"the report lacks its stage .*answers"):
        page(tuned={"chat": str(chat)}, card=str(chat))
    page(tuned={"chat": str(chat), "answers": str(answers)}, card=str(chat))
    assert "321 conversations. Tuned by DPO on 45" in (chat / "README.md").read_text()
    config = json.loads((model / "config.json").read_text())
    record = json.loads((answers / "sft.json").read_text())
    (answers / "sft.json").write_text(json.dumps(record | {"model": str(answers.parent / "b")}))
    shutil.copytree(model, answers.parent / "b")
    (answers.parent / "b" / "config.json").write_text(json.dumps(config | {"hidden_size": 8}))
    for card in (answers, answers.parent / "b"):
        with pytest.raises(InputError, match=r"its hidden_size is 8, but the run's is"):
            page(tuned=tuned, card=str(card))


def test_a_run_that_began_with_a_model_says_so(page, run):
    config = OmegaConf.load(run / "config.yaml")
    config.init_from = "models/mistral"
    OmegaConf.save(config, run / "config.yaml")
    _, parsed = page()
    assert "trained from mistral on" in parsed.text
    assert "from scratch" not in parsed.text


def test_run_in_progress(page, run, lines):
    write_metrics(run, lines[:9])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "trai')  # an incomplete line
    _, parsed = page()
    assert "in progress, step 6" in parsed.text


def test_nothing_but_steps_is_enough(page, run, lines):
    write_metrics(run, [line for line in lines if line["kind"] == "train"][:1])
    text, _ = page()
    assert "Evaluation</h2>" not in text
    assert "Samples</h2>" not in text


def test_changed_data_is_said(page, run):
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"data_fingerprint": "0ld"}))
    _, parsed = page()
    assert "has changed since" in parsed.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "nowhere"}, r"run=nowhere: has no config\.yaml"),
        ({"corpus": "nowhere"}, r"nowhere/manifest\.json does not exist"),
        ({"results": "nowhere"}, "results=nowhere: does not exist"),
        ({"perplexity": "nowhere"}, "perplexity=nowhere: does not exist"),
        ({"tuned": {"x": "nowhere"}}, r"tuned\.x=nowhere: has no sft\.json or dpo\.json"),
        ({"samples": {"mine": "nowhere"}}, r"samples\.mine=nowhere: is not a file"),
        ({"max_samples": -1}, "max_samples=-1"),
    ],
)
def test_what_is_missing_is_named(page, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        page(**settings)
    assert not (tmp_path / "pages").exists()


def test_samples_of_another_kind_are_refused(page, tmp_path):
    path = tmp_path / "samples.jsonl"
    for row in ('{"text": "a"}', '{"prompt": "a", "generated": "\\ud83d"}'):
        path.write_text(row + "\n")
        with pytest.raises(InputError, match="rows without 'prompt' and 'generated'"):
            page(samples={"mine": str(path)})


def test_run_without_a_step_is_refused(page, run, lines):
    write_metrics(run, lines[:2])
    with pytest.raises(InputError, match="has no training step yet"):
        page()


def test_incidents_and_cost(page, run, lines):
    for line in lines:
        line["time"] = 1000.0 + 4 * line["step"]
        if line["kind"] == "train" and line["step"] in (7, 9):
            line["skipped"] = "spike"
    more = [
        event("rewind", 18, to_step=15, cause="3 bad steps in a row", time=1080.0),
        event("checkpoint", 20, held_seconds=1.5, bytes=3 * 10**9, time=1080.0),
    ]
    write_metrics(run, sorted(lines + more, key=lambda line: line["step"]))
    text, parsed = page()
    assert "Restarted once, at step 15." in parsed.text
    assert "Skipped steps 7, 9." in parsed.text
    assert "Rewound from step 18 to 15: 3 bad steps in a row." in parsed.text
    assert text.count(">skipped<") == 4  # two steps, in a wide and a narrow drawing
    assert "0.05 (1 min 30 s x 2)" in parsed.text  # 90 seconds of 2 processes, in hours
    assert "2 min 0 s" in parsed.text
    assert "60,000" in parsed.text  # 3000 tokens in 0.05 hours
    assert "1, 3.00 GB; training stalled for 1.5 s" in parsed.text


def test_shards_have_their_hashes(page, corpus):
    _, parsed = page()
    for split in corpus.splits.values():
        for entries in split.values():
            for entry in entries:
                assert f"{entry['sha256']}  {entry['file']}" in parsed.text


@pytest.fixture
def suite_results(results) -> Path:
    content = json.loads(results.read_text())
    for model in content["models"].values():
        model["settings"]["suites"] = ["open_llm_v1"]
        for choice in suite_choices("open_llm_v1"):
            model["tasks"][choice.task] = {
                **model["tasks"]["which"],
                "shown": choice.metric,
                "num_fewshot": choice.num_fewshot,
                "metrics": {choice.metric: {"value": 0.4321, "stderr": 0.011}},
            }
    results.write_text(json.dumps(content))
    return results


def test_published_models_follow_ours(page, suite_results):
    text, parsed = page(results=str(suite_results))
    assert "open_llm_v1, percent" in parsed.text
    for score in ("43.21", "± 1.1", "39.68", "Danube2 1.8B", "48.72"):
        assert score in parsed.text
    assert "Technical Report, table 6, arxiv.org/abs/2401.16818" in parsed.text
    assert "https://" not in text


def test_runs_side_by_side(page, run, lines, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "config.yaml").write_text(CONFIG.replace("seed: 7", "seed: 8"))
    write_metrics(other, [line for line in lines if line["step"] <= 12])
    text, parsed = page(others={"other": str(other)})
    assert "Different settings" in parsed.text
    rows = re.findall(r'<th scope="row">([^<]+)</th><td class="n">([^<]*)</td><td class="n">', text)
    assert ("seed", "7") in rows
    assert ("tokens", "3,000") in rows
    assert "recipe.name" not in dict(rows)
    assert "in progress, step 12" in parsed.text
    assert text.count("<svg") == 14
    with pytest.raises(InputError, match=r"others\.x=nowhere: has no config"):
        page(others={"x": "nowhere"})


def test_model_card(page, suite_results, model, tmp_path):
    folder = tmp_path / "exported"
    shutil.copytree(model, folder)
    content = json.loads(suite_results.read_text())
    content["models"]["pretrained"]["folder"] = str(folder)
    suite_results.write_text(json.dumps(content))
    page(results=str(suite_results), card=str(folder))
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "transformers"
    assert about["pipeline_tag"] == "text-generation"
    scores = {
        (entry["dataset"]["name"], entry["metrics"][0]["type"]): entry["metrics"][0]["value"]
        for entry in about["model-index"][0]["results"]
    }
    assert scores["which", "acc"] == 61.0
    assert scores["gsm8k", "exact_match"] == 43.21
    assert "| code |" in body
    assert "| Danube2 1.8B [3] | 43.34 |" in body
    assert "| untrained |" not in front
    assert "c0ffee" in body
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.to_dict()["model-index"]
    with pytest.raises(InputError, match="card=nowhere: is not a Hugging Face folder"):
        page(card="nowhere")


OVERLAPS = """
(() => {
  const shown = (t) => t.getBoundingClientRect().width > 0;
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(shown);
    const boxes = texts.map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, a], n) => {
      const label = svg.getAttribute('aria-label');
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1
          || a.bottom > frame.bottom + 1) found.push(`${label}: "${text}" leaves the drawing`);
      for (const [other, b] of boxes.slice(n + 1))
        if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
          found.push(`${label}: "${text}" on "${other}"`);
    });
  }
  for (const e of document.querySelectorAll('main *, header *')) {
    const box = e.getBoundingClientRect();
    if (box.right > innerWidth + 1 && !e.closest('.scroll, pre, svg'))
      found.push(`${e.tagName} ${e.textContent.slice(0, 40)} ends at ${box.right}`);
  }
  return found;
})()
"""
"""What is written over other text of a drawing, or out of it, or out of the page."""


def test_pages_can_be_read(page, run, lines, tuned, suite_results, tmp_path):
    """No text on other text and nothing beyond the page's edge: with other runs for comparison and
    tuned models; and where restarts, skipped steps and a stage lie close together."""
    out = tmp_path / "pages" / "report.html"
    page(results=str(suite_results), others={"other": str(run)}, tuned=tuned)
    shutil.copy(out, tmp_path / "tuned.html")
    for line in lines:
        if line["kind"] == "train" and line["step"] in (14, 17, 19, 21):
            line["skipped"] = "spike"
    marks = [event("resume", 18), event("resume", 20), event("rewind", 22, to_step=21, cause="nan")]
    write_metrics(run, sorted(lines + marks, key=lambda line: line["step"]))
    page()
    shutil.copy(out, tmp_path / "marked.html")
    with browser.page() as tab:
        for name in ("tuned", "marked"):
            for width in (1280, 390):
                tab.open(f"file://{tmp_path / name}.html", width, 900)
                assert tab.js("innerWidth") == width
                assert tab.js("document.documentElement.scrollWidth") == width
                assert tab.js("document.querySelectorAll('svg text').length") > 50
                assert tab.js(OVERLAPS) == [], (name, width)
