"""A last stage of longer sequences: packed long documents, YaRN, CP, kill and export."""

from __future__ import annotations

import itertools
import json
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml

from data_pipeline.sampling.batches import held_out_batches
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.corpus import open_corpus
from data_pipeline.tokenizing.documents import read_documents
from eval.tasks.build_tasks import BuildTasksConfig, build_tasks
from eval.tasks.needle import NeedleConfig
from pretrain.export import read_run_config
from pretrain.stage_network import network_after
from tests.conftest import ROOT
from tests.corpora import read_json_lines
from tests.model.families.parity import imported, stock
from tests.runs import arguments, ledger, records

SHORT, LONG = 64, 256
MIXTURE = "{long: 0.34, short: 0.66}"
SCALING = f"{{type: yarn, factor: 4, original_max_seq_len: {SHORT}}}"


@pytest.fixture(scope="module")
def packed(command, corpus, tmp_path_factory):
    """The corpus choice of conf/corpus for long context, in miniature: two sources by length."""
    folder = tmp_path_factory.mktemp("packed")
    rows, sizes = [], itertools.cycle([40, 100, 180, 250, 400])
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-h]*.py")):
        text = path.read_text()[:9000]
        while text:
            size = next(sizes)
            rows.append({"text": text[:size]})
            text = text[size:]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "corpus"
    done = command(
        *("data_pipeline", "tokenize", "corpus=long_context", f"out={out}", "workers=1"),
        f"corpus.sources.long.paths=[{folder / 'rows.jsonl'}]",
        *("corpus.sources.long.min_chars=150", "corpus.sources.short.max_chars=149"),
        *(f"corpus.fit=[{SHORT},{LONG}]", "corpus.held_out_fraction=0.1"),
        *("tokenizer=load", f"tokenizer.path={corpus.tokenizer_path}"),
        "tokenizer.pad_token='<pad>'",
    )
    assert done.returncode == 0, done.stderr
    return open_corpus(out)


@pytest.fixture(scope="module")
def needles(packed, tmp_path_factory):
    """Needle tasks of the long length, with one fact per text."""
    out = tmp_path_factory.mktemp("needles") / "tasks"
    needle = NeedleConfig(
        lengths=[LONG], depths=[0.0, 100.0], samples=1, facts=1, fact="{name} is {word}."
    )
    build_tasks(
        BuildTasksConfig(
            corpus=str(packed.folder),
            out=str(out),
            questions=0,
            documents=0,
            needle=needle,
        )
    )
    return out


def training(packed, run_dir, **changes):
    """Returns the command: 10 steps of 64 tokens, then 10 of 256."""
    stages = {
        f"recipe__stages__{name}__{key}": value
        for name, seq_len in (("short", SHORT), ("long", LONG))
        for key, value in (("seq_len", seq_len), ("mixture", MIXTURE))
    }
    changes = stages | {"model__sliding_window": None, "model__architecture": "llama"} | changes
    return arguments(packed.folder, run_dir, **changes)


@pytest.fixture(scope="module")
def runs(command, packed, needles, tmp_path_factory):
    """An uninterrupted run on one process, and one with CP 2 that was killed in the long stage."""
    folder = tmp_path_factory.mktemp("long_context")
    scaled = {"recipe__stages__long__rope_scaling": SCALING}
    whole = command(*training(packed, folder / "whole", **scaled))
    assert whole.returncode == 0, whole.stderr
    split = scaled | {
        "parallel__cp": 2,
        "checkpoint__every_steps": 10,
        "checkpoint__keep_last": 9,
        "checkpoint__asynchronous": False,
        "evaluation__tasks": f"[long_context_needle_{LONG}]",
        "evaluation__task_folder": needles,
        "evaluation__every_steps": 0,
    }
    again = training(packed, folder / "split", **split)
    faulty = ["tests.faults.faulty", "SIGKILL", "1", "13", *again[1:]]
    assert command(*faulty, processes=2).returncode != 0
    resumed = command(*again, processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 10" in resumed.stdout
    return folder


def test_documents_are_in_the_source_of_their_length_and_never_cut(packed):
    rows = read_json_lines(packed.folder.parent / "rows.jsonl")
    whole = {row["text"] for row in rows if len(row["text"]) < LONG}
    for source, least, most in (("long", 150, LONG - 1), ("short", 1, 149)):
        texts = {document.text for document in read_documents(packed, "train", source)}
        fitting = {text for text in texts & whole if least <= len(text) <= most}
        assert len(fitting) > 100
        # Other documents of the long source are pieces of those that no sequence can hold.
        assert all(source == "long" for text in texts - fitting)
        for batch in held_out_batches(packed, source, LONG, 4, 4096):
            starts = sorted(set(batch.cu_seqlens.tolist()))
            assert max(b - a for a, b in itertools.pairwise(starts)) <= min(LONG, most + 1)


def test_a_killed_run_with_context_parallelism_trains_the_same_curve(runs):
    whole, split = records(runs / "whole"), records(runs / "split")
    assert ledger(runs / "split") == ledger(runs / "whole")
    assert len(whole) == len(split) == 20
    for one, other in zip(whole, split, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["seq_len"] == (SHORT if one["step"] <= 10 else LONG)
    assert whole[-1]["loss"] < whole[0]["loss"]


def test_exports_have_the_positions_of_their_stage(runs, command, tmp_path):
    configs = {}
    for step in (10, 20):
        out = tmp_path / str(step)
        done = command(
            *("pretrain", "export", f"run={runs / 'split'}", f"step={step}", f"out={out}"),
            "dtype=float32",
        )
        assert done.returncode == 0, done.stderr
        configs[step] = json.loads((out / "config.json").read_text())
    assert not configs[10].get("rope_scaling")
    assert configs[10]["max_position_embeddings"] == SHORT
    assert configs[20]["max_position_embeddings"] == LONG
    for key in ("rope_scaling", "rope_parameters"):
        stated = configs[20][key]
        assert stated["rope_type"] == "yarn"
        assert stated["factor"] == 4.0
        assert stated["original_max_position_embeddings"] == SHORT
    _logits_agree(runs / "split", tmp_path / "20")


def _logits_agree(run_dir, folder):
    """Compares the network of the last stage with stock transformers on the longest sequence."""
    theirs = stock(folder)
    run = read_run_config(run_dir)
    plan = StagePlan(run.recipe, {"long": 10**6, "short": 10**6})
    ours = imported(folder)
    ours.config = network_after(run.model, plan, plan.total_steps)
    assert ours.config.rope_scaling.type == "yarn"
    tokens = torch.randint(3, 259, (2, LONG), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = ours(tokens), theirs(tokens).logits
        assert (found - expected).abs().max() / expected.abs().max() < 1e-5
        ours.config = network_after(run.model, plan, 1)
        unscaled = ours(tokens)
    assert (unscaled - expected).abs().max() / expected.abs().max() > 1e-3, "no scaling differs"


def test_needles_are_scored_in_training(runs):
    (record,) = records(runs / "split", "eval")
    scores = record["tasks"][f"long_context_needle_{LONG}"]
    assert set(scores) == {"acc", "exact_match", "samples", "needle", "depths"}
    assert scores["samples"] == 2


def test_a_later_stage_may_raise_the_positions_of_its_run(command, packed, tmp_path):
    """A stage that is added to a run has longer sequences, if atom_tokens allowed for them."""
    changes = {"recipe__stages__short__tokens": 4096, "recipe__atom_tokens": LONG}
    longer = [
        *training(packed, tmp_path / "run", **changes, model__max_seq_len=LONG),
        f"recipe.stages.long.rope_scaling={SCALING}",
        "stop_after=3",
    ]
    made = training(packed, tmp_path / "run", **changes, model__max_seq_len=SHORT)
    short = [word for word in made if not word.startswith("recipe.stages.long.")]
    done = command(*short, "~recipe.stages.long")
    assert done.returncode == 0, done.stderr
    done = command(*longer)
    assert done.returncode == 0, done.stderr
    assert [r["seq_len"] for r in records(tmp_path / "run")] == [SHORT, SHORT, LONG]
    refused = command(*short, "~recipe.stages.long")
    assert refused.returncode == 2


def test_the_recipes_reach_their_lengths_from_4096_positions():
    for name, lengths in (("long_context", [32768, 65536]), ("long_context_yarn", [65536])):
        content = yaml.safe_load((ROOT / f"conf/recipe/{name}.yaml").read_text())
        stages = content["stages"].values()
        assert [stage["seq_len"] for stage in stages] == lengths
        for stage in stages:
            scaling = stage.get("rope_scaling")
            if scaling is None:
                assert stage["rope_theta"] > 1e6
            else:
                assert scaling["factor"] * scaling["original_max_seq_len"] == stage["seq_len"]
