"""The page of inspect shows the content of the files, complete, escaped and offline."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.inspection import corpus as corpus_facts
from data_pipeline.inspection.config import InspectConfig
from data_pipeline.inspection.inspect_page import inspect
from data_pipeline.inspection.subject import load_subject
from data_pipeline.inspection.words import percent, text_size
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.store.manifest import load_manifest
from tests.corpora import byte_tokenizer
from tests.data_pipeline.shard_folders import full_corpus, write_json

RECIPE: dict[str, Any] = {
    "name": "two",
    "global_batch_tokens": 2048,
    "stages": {
        "short": {"seq_len": 64, "tokens": 20_000, "mixture": {"code": 3.0, "prose": 1.0}},
        "long": {"seq_len": 128, "tokens": 10_000, "mixture": {}, "rope_theta": None},
    },
}
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects text, addresses and classes, and fails if a closing tag has no opening tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.classes: list[str] = []
        self.feed(page)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        self.classes += [value or "" for key, value in attrs if key == "class"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return full_corpus(tmp_path_factory.mktemp("inspect") / "whole").folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def page(tmp_path):
    def page(**settings) -> Page:
        inspect(InspectConfig(out=str(tmp_path / "page.html"), overwrite=True, **settings))
        return Page((tmp_path / "page.html").read_text())

    return page


def plan_of(folder, **settings) -> Any:
    return load_subject(InspectConfig(out="x", data=str(folder), recipe=RECIPE, **settings)).plan


def step(name, came, dropped, reasons, examples=()):
    return {
        "name": name,
        "in_documents": came,
        "in_bytes": came * 1000,
        "dropped_documents": dropped,
        "dropped_bytes": dropped * 1000,
        "changed_documents": 0,
        "reasons": reasons,
        "examples": list(examples),
    }


def example(reason, text, note=""):
    return {"reason": reason, "file": "web/a.jsonl", "position": 77, "text": text, "note": note}


@pytest.fixture
def cleaned(folder):
    script = "</pre><script>alert(1)</script>"
    steps = [
        step("gopher_quality", 500, 100, {"gopher_short_doc": [60, 60000], "x": [40, 40000]},
             [example("gopher_short_doc", script), *(example("x", f"text {n}") for n in range(5))]),
        step("decontaminate", 400, 3, {"hellaswag": [3, 3000]},
             [example("hellaswag", "leaked", "13-gram 'a b <c>'")]),
        step("minhash", 397, 97, {"near_duplicate": [97, 97000]}),
    ]  # fmt: skip
    about = {"code": {"documents": 500, "bytes": 500_000, "steps": steps}}
    about["prose"] = {"documents": 9, "bytes": 9000, "steps": []}
    frequent = {"rank": 1, "documents": 1234, "text": "Subscribe <b>now</b>", "source": "code"}
    frequent |= {"file": "web/c.jsonl", "position": 99}
    paragraphs = {
        "removed": {"code": {"paragraphs": 5678, "bytes": 90_000}},
        "most_frequent": [frequent],
    }
    write_json(folder / "cleaning.json", {"sources": about, "paragraphs": paragraphs})
    (folder / "rejected").mkdir()
    row = {"file": "web/b.jsonl", "line": 12, "reason": "no <text>", "text": script + "y" * 5000}
    lines = [json.dumps(row), "not json at all", *[json.dumps(row)] * 40]
    (folder / "rejected" / "code.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_page_is_one_file_and_needs_no_network(page, cleaned):
    found = page(data=str(cleaned), recipe=RECIPE)
    assert all(address.startswith("#") for address in found.addresses)
    for section in ("sources", "lengths", "plan", "cleaning", "sequences", "documents", "identity"):
        assert f"#{section}" in found.addresses


def test_identity_and_totals(page, folder):
    manifest = load_manifest(folder)
    found = page(data=str(folder)).text
    for fact in (
        manifest.fingerprint,
        manifest.tokenizer["sha256"],
        "259 ids (pad 0, bos 1, eos 2)",
        "name tokenizers",
        "every document ends in EOS",
        "4 train, 4 held_out",
    ):
        assert fact in found
    for split in ("train", "held_out"):
        for tokens in manifest.source_tokens(split).values():
            assert f"{tokens:,}" in found


def test_lengths_are_those_of_the_documents(folder):
    manifest = load_manifest(folder)
    found = corpus_facts.sample_lengths(manifest, "code")
    entries = manifest.shards("train", "code")
    assert len(found.tokens) == sum(entry["documents"] for entry in entries)
    assert found.tokens.sum() == sum(entry["tokens"] for entry in entries)
    edges, shares = found.histogram()
    assert sum(shares) == pytest.approx(100)
    assert edges[0] <= found.tokens[0]
    assert found.tokens[-1] < edges[-1]
    assert found.quantiles()[1] == pytest.approx(np.median(found.tokens), abs=2)


def test_many_shards_are_sampled(folder, monkeypatch):
    """A manifest of 50,000 shards that share one pair of files."""
    fields = json.loads((folder / "manifest.json").read_text())
    entry = fields["splits"]["train"]["code"][0]
    fields["splits"] = {
        "train": {"web": [{**entry, "file": f"train/web-{n:05}"} for n in range(50_000)]}
    }
    (folder / "manifest.json").write_text(json.dumps(fields))
    manifest = load_manifest(folder)
    index = corpus_facts.read_index(folder / f"{entry['file']}.idx")
    opened = []

    def read(path):
        opened.append(path.name)
        return index

    monkeypatch.setattr(corpus_facts, "read_index", read)
    found = corpus_facts.sample_lengths(manifest, "web")
    assert (found.shards, found.of_shards) == (corpus_facts.MAX_SHARDS, 50_000)
    again = list(opened)
    opened.clear()
    corpus_facts.sample_lengths(manifest, "web")
    assert opened == again
    assert len({int(re.findall(r"\d+", name)[0]) // 5000 for name in opened}) == 10


def test_plan_in_whole_steps(page, folder):
    manifest = load_manifest(folder)
    plan = plan_of(folder)
    short, long = plan.stages
    assert (short.tokens, short.samples) == (20480, 320)
    assert short.shares == {"code": 0.75, "prose": 0.25}
    sizes = manifest.source_tokens("train")
    assert long.shares == {s: pytest.approx(t / sum(sizes.values())) for s, t in sizes.items()}
    assert sum(plan.taken().values()) == pytest.approx(20480 + 10240)
    found = page(data=str(folder), recipe=RECIPE)
    assert "prose 25.0%, code 75.0%" in found.text
    assert "The recipe two takes 30,720 tokens in 2 stages." in found.text
    assert f"{plan.epochs()['code']:.2f}" in found.text
    assert "bad" not in found.classes


def test_pretrain_makes_the_same_plan():
    """The recipe is read here and by the trainer, and both must agree."""
    from data_pipeline.inspection.plan import plan_recipe
    from data_pipeline.sampling.recipe import StagePlan
    from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig

    tokens = {"code": 500_000, "prose": 900_000}
    recipe = {**RECIPE, "stages": {**RECIPE["stages"]}}
    ended = {"tokens": 32_768, "planned_tokens": 400_000}
    recipe["stages"]["short"] = {**RECIPE["stages"]["short"], **ended}
    stages = {name: TrainingStageConfig(**stage) for name, stage in recipe["stages"].items()}
    theirs = StagePlan(TrainingRecipeConfig("two", 2048, stages), tokens)
    ours: Any = plan_recipe(recipe, tokens, 5, 4.0)
    order = SampleOrder(tokens, theirs.stages, 5)
    assert ours.order.to_json() == order.to_json()


@pytest.mark.parametrize(("tokens", "level"), [(700_000, "warn"), (2_000_000, "bad")])
def test_too_many_epochs_are_marked(tokens, level, page, folder):
    recipe = {
        **RECIPE,
        "stages": {"only": {"seq_len": 64, "tokens": tokens, "mixture": {"code": 1}}},
    }
    found = page(data=str(folder), recipe=recipe, max_epochs=10.0)
    assert f"n {level}" in found.classes
    assert f"check {level}" in found.classes
    said = "more than max_epochs=10" if level == "bad" else "up to 4 epochs cost little"
    assert said in found.text


def test_a_plan_that_pretrain_refuses_is_shown(page, folder):
    recipe = {
        "name": "huge",
        "global_batch_tokens": 2**20,
        "stages": {"s": {"seq_len": 2**20, "tokens": 2**21}},
    }
    found = page(data=str(folder), recipe=recipe, max_epochs=100.0)
    assert "A run will not start: source 'code' has" in found.text
    assert "#sequences" not in found.addresses


BAD_RECIPES: dict[str, dict[str, Any]] = {
    "mixture.cod=1.0: the corpus has no source 'cod' (did you mean 'code'?)": {
        "mixture": {"cod": 1.0}
    },
    "recipe.global_batch_tokens=2048: expected a multiple of recipe.stages.short.seq_len=100": {
        "seq_len": 100
    },
    "recipe.stages.short.mixture: all weights are 0": {"mixture": {"code": 0.0}},
}


@pytest.mark.parametrize("message", BAD_RECIPES)
def test_recipes_that_do_not_fit(message, page, folder):
    stage = {**RECIPE["stages"]["short"], **BAD_RECIPES[message]}
    with pytest.raises(InputError) as error:
        page(data=str(folder), recipe={**RECIPE, "stages": {"short": stage}})
    assert message in str(error.value)
    with pytest.raises(InputError, match="Give global_batch_tokens, and stages with"):
        page(data=str(folder), recipe={"stages": {}})


def test_sequences_are_what_a_step_reads(page, folder):
    from data_pipeline.sampling.batches import BatchReader

    plan = plan_of(folder)
    batch = BatchReader(load_manifest(folder), plan.order).read(1, [0])
    found = page(data=str(folder), recipe=RECIPE, sequences=1)
    text = byte_tokenizer().decode(batch.tokens[0].tolist(), skip_special_tokens=False)
    for part in text.split("</s>"):
        assert " ".join(part.split()) in found.text
    borders = int((batch.cu_seqlens < 128).sum())
    assert f"{borders} piece" in found.text
    assert f"{int((batch.labels == -100).sum())} tokens without a label" in found.text


def test_documents_are_named_and_whole(page, folder):
    found = page(data=str(folder), documents=3).text
    shown = re.findall(
        r"(code|prose)/(\d+)\.txt, \d+ · (\d+) tokens · (train/\S+), document (\d+)", found
    )
    assert len(shown) >= 5
    for source, file, tokens, shard, number in shown:
        assert file == number
        assert shard.startswith(f"train/{source}")
        assert int(tokens) <= 401
    assert page(data=str(folder), documents=3).text.split("Made")[0] == found.split("Made")[0]


def test_cleaning_is_shown_and_escaped(page, cleaned, tmp_path):
    found = page(data=str(cleaned))
    for said in (
        "300 of 500 documents kept (60.0%), 300 kB of 500 kB",
        "after gopher quality",
        "gopher quality: gopher short doc 60 documents, 60 kB",
        "</pre><script>alert(1)</script>",
        "web/a.jsonl, 77 · 13-gram 'a b <c>'",
        "minhash: near duplicate 97 documents, 97 kB",
        "This source has no cleaning steps.",
        "42 lines, the first 20 shown",
        "no <text>",
        "not json at all",
        "5,678 paragraphs removed, 90 kB (code 5,678). Each stays in the first document",
        "1,234Subscribe <b>now</b>codeweb/c.jsonl99",
    ):
        assert said in found.text
    assert found.text.count("text 0") == 1
    assert "text 3" not in found.text  # three examples of a reason
    raw = (tmp_path / "page.html").read_text()
    assert "<script" not in raw
    assert len(raw) < 300_000


def test_many_sources(page, folder, tmp_path):
    fields = json.loads((folder / "manifest.json").read_text())
    entries = fields["splits"]["train"]["code"]
    names = [f"source_{n:02}" for n in range(60)]
    fields["splits"] = {"train": {name: entries[n % 2 :] for n, name in enumerate(names)}}
    (folder / "manifest.json").write_text(json.dumps(fields))
    steps = [step("c4", 9, 1, {"r": [1, 1000]}, [example("r", "x" * 9000)] * 3)]
    about = {name: {"documents": 9, "bytes": 9000, "steps": steps} for name in names}
    write_json(folder / "cleaning.json", {"sources": about})
    recipe = {**RECIPE, "stages": {"s": {"seq_len": 64, "tokens": 10_000}}}
    found = page(data=str(folder), recipe=recipe)
    assert "36 more sources" in found.text
    assert "53 more sources" in found.text
    assert "The charts show the 12 largest sources" in found.text
    assert "There are no held-out tokens of any source" in found.text
    for name in names:
        assert name in found.text
    assert (tmp_path / "page.html").stat().st_size < 1_200_000


def test_one_source_without_cleaning_and_plan(page, folder):
    fields = json.loads((folder / "manifest.json").read_text())
    fields["splits"] = {"train": {"code": fields["splits"]["train"]["code"]}, "held_out": {}}
    (folder / "manifest.json").write_text(json.dumps(fields))
    for path in folder.rglob("*.docs.parquet"):
        path.unlink()
    found = page(data=str(folder))
    assert "documents of 1 source," in found.text
    assert "#cleaning" not in found.addresses
    assert "#plan" not in found.addresses
    assert "There are no held-out tokens of any source" in found.text


@pytest.fixture
def run(folder, tmp_path):
    plan = plan_of(folder, seed=3)
    run = tmp_path / "run"
    run.mkdir()
    config = {"seed": 3, "data": {"folder": str(folder), "max_epochs": 4.0}, "recipe": RECIPE}
    write_json(run / "config.yaml", config)
    write_json(run / "env.json", {"data_fingerprint": load_manifest(folder).fingerprint})
    (run / "order.json").write_text(plan.order.to_json())
    return run


def test_a_run_has_its_data_and_plan(page, folder, run):
    of_run = page(run=str(run)).text.split("Made")[0]
    assert of_run == page(data=str(folder), recipe=RECIPE, seed=3).text.split("Made")[0]


def test_changed_data_of_a_run_is_reported(page, folder, run):
    write_json(run / "env.json", {"data_fingerprint": "0123456789abcdef0123"})
    found = page(run=str(run))
    assert "was trained on data with the fingerprint 0123456789abcdef" in found.text
    assert "check bad" in found.classes


SETTINGS: dict[str, dict[str, Any]] = {
    "Give data=<folder of shards> or run=<run folder>": {},
    "run=r: the run already has a recipe": {"run": "r", "recipe": RECIPE},
    "documents=-1: expected 0 or more": {"data": "d", "documents": -1},
    "run=nowhere: config.yaml is missing": {"run": "nowhere"},
    "nowhere/manifest.json does not exist": {"data": "nowhere"},
    "s3://bucket/web is remote": {"data": "s3://bucket/web"},
}


@pytest.mark.parametrize("message", SETTINGS)
def test_what_is_missing_is_named(message, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        page(**SETTINGS[message])
    assert message in str(error.value)
    assert not os.path.exists("page.html")


def test_damaged_report_is_named(page, folder):
    (folder / "cleaning.json").write_text('{"sources": {"code": {"documents": 3}}}')
    with pytest.raises(InputError, match=r"cleaning.json is not a cleaning report \(KeyError"):
        page(data=str(folder))


def test_command(command, folder, tmp_path):
    """The recipe is a choice of the same group as in pretrain, with the same overrides."""
    out = tmp_path / "pages" / "x.html"
    arguments = ["data_pipeline", "inspect", f"data={folder}", f"out={out}", "recipe=demo"]
    changes = ["recipe.stages.short.tokens=16384", "recipe.stages.long.mixture={code: 1}"]
    done = command(*arguments, *changes)
    assert done.returncode == 0, done.stderr
    found = Page(out.read_text()).text
    assert "The recipe demo takes 98,304 tokens in 2 stages." in found
    done = command(*arguments, "recipe=demos")
    assert done.returncode == 2
    assert "recipe=demos: unknown choice (did you mean 'demo'?)" in done.stderr


def test_numbers_in_words():
    assert [text_size(n) for n in (12, 45_000, 1_250_000, 3e9, 2.5e12)] == [
        "12 B",
        "45 kB",
        "1.2 MB",
        "3.00 GB",
        "2.50 TB",
    ]
    assert [percent(0, 10), percent(1, 3), percent(1, 90_000)] == ["0.0%", "33.3%", "0.0011%"]
