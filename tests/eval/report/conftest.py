"""A run folder, scores, tuned folders, and the report made of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.report.command import report
from eval.report.config import ReportConfig
from eval.report.content import page_content
from eval.tasks.suites import suite_choices

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Parses a page, fails if tags are not balanced, and collects the text."""

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
def content(run):
    """Returns the content of the page, before it is rendered."""

    def content(**settings: Any) -> dict[str, Any]:
        return page_content(ReportConfig(**{"run": str(run), "out": "unused", **settings}))

    return content


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


@pytest.fixture
def tuned(model, tmp_path) -> dict[str, str]:
    """Folders like those of finetune: SFT, then DPO of its result, with validation."""
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
