"""The report as an HTML page: whole, offline, escaped and readable; and the model card."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from conf.errors import InputError
from eval.report.card import parent_of
from tests import browser
from tests.eval.report.conftest import event, validation, write_metrics

GOLDEN = Path(__file__).with_name("golden.html")
VOLATILE = {
    r"<style>.*?</style>": "<style/>",
    r"<svg.*?</svg>": "<svg/>",
    r"\b[0-9a-f]{16,}\b": "HASH",
    r"Written [-\d: ]+ UTC": "Written TIME",
}
"""Parts of the page that change with the day, the style or the drawing, and what replaces them."""


def test_page_needs_no_network(page, results):
    text, parsed = page(results=str(results))
    assert not re.search(r"https?://|//[a-z]|@import|url\(|<script", text)
    assert parsed.addresses
    assert all(address.startswith("#") for address in parsed.addresses)
    for address in parsed.addresses:
        assert f'id="{address[1:]}"' in text


def test_the_whole_page(page, run, suite_results, tuned, tmp_path):
    """The page with all its parts; UPDATE_GOLDEN=1 rewrites the file after a change of texts."""
    perplexity, samples = tmp_path / "perplexity.json", tmp_path / "samples.jsonl"
    perplexity.write_text(json.dumps(validation(30, 2.125 * 1.002)))
    rows = [{"prompt": "p", "generated": "<b>x</b> & y"}, {"prompt": "q", "generated": "\n" * 40}]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, _ = page(
        results=str(suite_results),
        perplexity=str(perplexity),
        samples={"mine": str(samples)},
        tuned=tuned,
        others={"twin": str(run)},
    )
    for pattern, mask in VOLATILE.items():
        text = re.sub(pattern, mask, text, flags=re.DOTALL)
    text = re.sub(r"\n\s*", "\n", text)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


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
    with pytest.raises(InputError, match=r"the report lacks .*chat, a stage of this tuned model"):
        page(card=tuned["chat"])


def test_a_card_lists_the_stages_that_led_to_its_model(page, tuned, model, run):
    chat, answers = Path(tuned["chat"]), Path(tuned["answers"])
    record = json.loads((chat / "dpo.json").read_text())
    (chat / "dpo.json").write_text(json.dumps(record | {"model": str(answers)}))
    with pytest.raises(InputError, match=r"the report lacks .*answers, a stage"):
        page(tuned={"chat": str(chat)}, card=str(chat))
    page(tuned={"chat": str(chat), "answers": str(answers)}, card=str(chat))
    assert "321 conversations. Tuned by DPO on 45" in (chat / "README.md").read_text()
    config = json.loads((model / "config.json").read_text())
    record = json.loads((answers / "sft.json").read_text())
    (answers / "sft.json").write_text(json.dumps(record | {"model": str(answers.parent / "b")}))
    shutil.copytree(model, answers.parent / "b")
    (answers.parent / "b" / "config.json").write_text(json.dumps(config | {"hidden_size": 8}))
    for card in (answers, answers.parent / "b"):
        with pytest.raises(InputError, match=r"hidden_size is 8, but the run has 32"):
            page(tuned=tuned, card=str(card))


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
    with pytest.raises(InputError, match=r"card=nowhere: the folder has no config\.json"):
        page(card="nowhere")


def test_pages_can_be_read(page, run, lines, tuned, suite_results, tmp_path):
    """No text overlaps other text or exceeds the page.

    Tested with other runs for comparison and tuned models, and with restarts, skipped steps and a
    stage close to each other.
    """
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
                assert tab.js(browser.OVERLAPS) == [], (name, width)


def test_the_model_that_was_tuned_is_found_by_its_name(tmp_path):
    export, other = tmp_path / "export", tmp_path / "other"
    for folder in (export / "base", export / "chat", other / "chat"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()

    def parent(folder, model, *stages):
        return parent_of({"folder": folder, "model": model}, {stage: {} for stage in stages})

    assert parent(export / "chat", "base") == export / "base"
    assert parent(other / "chat", "base", export / "base") == export / "base"
    assert parent(other / "chat", "chat", other / "chat", export / "chat") == export / "chat"
    assert parent(other / "chat", "gone") == other / "gone"
    assert parent(export / "chat", str(other / "chat")) == other / "chat"  # of earlier versions
