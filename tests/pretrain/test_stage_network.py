"""The network of a stage is what is validated, saved, exported and resumed from (I16)."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.chat import ChatTemplate
from conf.errors import InputError
from data_pipeline.sampling.batches import held_out_batches
from data_pipeline.sampling.recipe import StagePlan
from eval.scores.perplexity import padded, score, segments
from model.config import ModelConfig
from model.rope_scaling import RopeScaling
from pretrain.checkpoints import files
from pretrain.checks import check_networks
from pretrain.export import ExportConfig, export
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig
from pretrain.resume_checks import check_same_network
from pretrain.stage_network import network_after, network_of_checkpoint
from tests.runs import arguments, records

OWN_BASE = {"recipe__stages__long__rope_theta": 50.0, "checkpoint__keep_last": 9}
"""Far enough from the model's 10,000 to show at 128 tokens."""


@pytest.fixture(scope="module")
def run(command, corpus, tmp_path_factory):
    """A run whose last stage has its own RoPE base, with its first step replayed."""
    folder = tmp_path_factory.mktemp("stage_network")
    made = arguments(corpus.folder, folder / "run", health__replay_steps="[11]", **OWN_BASE)
    done = command(*made, processes=2)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def exported(run_dir, out, step="latest"):
    export(ExportConfig(str(run_dir), step, str(out), "float32", ChatTemplate("t", "")))
    return out


def losses_in_transformers(folder, corpus, seq_len):
    """Returns the loss per source in stock transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    sizes = torch.from_numpy(corpus.token_bytes().astype("int64"))
    return {
        source: score(
            model,
            padded(segments(held_out_batches(corpus, source, seq_len, 1, 2048)), 2048),
            sizes,
            "cpu",
        ).loss
        for source in corpus.source_tokens("held_out")
    }


def test_trainer_perplexity_and_transformers_agree(command, corpus, run, tmp_path):
    out = exported(run, tmp_path / "model")
    last = records(run, "validation")[-1]
    done = command(
        *("eval", "perplexity", f"model={out}", f"data={corpus.folder}", "seq_len=128"),
        *("tokens=2048", f"out={tmp_path / 'scores.json'}", "device=cpu"),
    )
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "scores.json").read_text())["sources"]
    theirs = losses_in_transformers(out, corpus, 128)
    for source, expected in last["sources"].items():
        assert ours[source]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert theirs[source] == pytest.approx(expected["loss"], rel=1e-4)
    assert "RoPE base 50" in (out / "README.md").read_text()


@pytest.mark.parametrize(("step", "base"), [("10", 10_000.0), ("15", 50.0), ("0", 10_000.0)])
def test_an_export_has_the_network_of_its_step(run, tmp_path, step, base):
    out = exported(run, tmp_path / "model", step)
    assert json.loads((out / "config.json").read_text())["rope_theta"] == base


def test_an_export_of_a_checkpoint_from_before_it_stated_its_network(run, tmp_path):
    """The network of an older checkpoint follows from the config of its run."""
    older = tmp_path / "run"
    (older / "checkpoints").mkdir(parents=True)
    (older / "config.yaml").write_text((run / "config.yaml").read_text())
    newest = run / "checkpoints" / "step_20"
    copy = older / "checkpoints" / "step_20"
    copy.mkdir()
    for file in newest.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    about = files.read_manifest(copy)
    del about["network"]
    files.write_manifest(copy, about)
    out = exported(older, tmp_path / "model")
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 50.0


def test_a_replay_of_the_first_step_of_a_stage_has_its_network(run):
    [replay] = [e for e in records(run, "event") if e["event"] == "replay"]
    assert (replay["step"], replay["unequal_ranks"]) == (11, [])


def test_a_stage_that_was_begun_keeps_its_network():
    model = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64)
    recipe = TrainingRecipeConfig(
        "r",
        64,
        {"a": TrainingStageConfig(64, 640), "b": TrainingStageConfig(64, 640, rope_theta=5e5)},
    )
    plan = StagePlan(recipe, {"text": 10_000})
    assert network_after(model, plan, 10).rope_theta == 1e4
    assert network_after(model, plan, 11).rope_theta == 5e5
    network = {"rope_theta": 5e5, "not_known_here": 1}
    about = {"step": 11, "network": network}
    check_same_network(about, model, plan, "step_11")
    assert network_of_checkpoint(about, model, plan).rope_theta == 5e5
    network["rope_theta"] = 1e6
    with pytest.raises(InputError, match=r"stages.b.rope_theta=500000: step_11 was trained"):
        check_same_network(about, model, plan, "step_11")
    check_same_network({"step": 10, "network": {"rope_theta": 1e4}}, model, plan, "step_10")


def test_a_stage_has_its_own_scaling():
    model = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64)
    yarn = RopeScaling("yarn", 4.0, original_max_seq_len=16)
    stages = {
        "a": TrainingStageConfig(64, 640),
        "b": TrainingStageConfig(64, 640, rope_scaling=yarn),
    }
    plan = StagePlan(TrainingRecipeConfig("r", 64, stages), {"text": 10_000})
    assert network_after(model, plan, 10).rope_scaling == RopeScaling()
    assert network_after(model, plan, 11).rope_scaling == yarn
    network = {"rope_theta": 1e4, "rope_scaling": asdict(yarn)}
    check_same_network({"step": 11, "network": network}, model, plan, "step_11")
    check_same_network({"step": 10, "network": {"rope_theta": 1e4}}, model, plan, "step_10")
    network["rope_scaling"] = asdict(RopeScaling("linear", 2.0))
    with pytest.raises(InputError, match=r"stages.b.rope_scaling=.*yarn.*: step_11 was trained"):
        check_same_network({"step": 11, "network": network}, model, plan, "step_11")
    stages["a"].rope_scaling = RopeScaling("linear", 0.5)
    with pytest.raises(InputError, match=r"recipe.stages.a.rope_scaling.factor=0.5: expected 1"):
        TrainingRecipeConfig("r", 64, stages)


def two_stages(**long):
    """Returns a recipe of 10 steps of 64 tokens and 10 of 256."""
    stages = {"a": TrainingStageConfig(64, 2560), "b": TrainingStageConfig(256, 2560, **long)}
    return TrainingRecipeConfig("r", 256, stages)


def test_a_stage_switches_off_the_scaling_of_its_model():
    yarn = RopeScaling("yarn", 4.0, original_max_seq_len=64)
    model = ModelConfig(
        "m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=256, rope_scaling=yarn, rope_theta=5e5
    )
    recipe = two_stages()
    recipe.stages["a"].rope_scaling = RopeScaling("none")
    recipe.__post_init__()
    plan = StagePlan(recipe, {"text": 100_000})
    assert network_after(model, plan, 10).rope_scaling == RopeScaling()
    assert network_after(model, plan, 10).rope_theta == 5e5
    assert network_after(model, plan, 11).rope_scaling == yarn
    with pytest.raises(InputError, match=r"b.rope_scaling.type=none: requires the other keys"):
        two_stages(rope_scaling=RopeScaling("none", 4.0))
    with pytest.raises(InputError, match=r"model.rope_scaling.type=none: .*linear, llama3"):
        ModelConfig(
            "m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64, rope_scaling=RopeScaling("none")
        )


def test_positions_are_those_of_the_longest_sequences_before_a_stage_with_another_rope():
    model = ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=512)
    yarn = RopeScaling("yarn", 4.0, original_max_seq_len=64)
    for changes, expected in (({"rope_theta": 5e5}, 64), ({"rope_scaling": yarn}, 64), ({}, 512)):
        plan = StagePlan(two_stages(**changes), {"text": 100_000})
        assert network_after(model, plan, 10).max_seq_len == expected
        assert network_after(model, plan, 11).max_seq_len == 512


def test_a_factor_reaches_the_sequences_of_its_stage():
    yarn = RopeScaling("yarn", 2.0, original_max_seq_len=64)
    with pytest.raises(
        InputError, match=r"b.rope_scaling.factor=2: scales 64 positions to fewer than the 256 .* 4"
    ):
        two_stages(rope_scaling=yarn)


def test_a_stage_with_a_network_that_its_class_does_not_have_is_refused():
    model = ModelConfig(
        *("m", "olmo3", 64, 32, 32, 1, 2, 2),
        max_seq_len=256,
        norm_order="after",
        qk_norm=True,
        qk_norm_width="projection",
        sliding_window=16,
        local_rope_theta=1e4,
    )
    yarn = RopeScaling("yarn", 4.0, original_max_seq_len=64, truncate=False)
    plan = StagePlan(two_stages(rope_scaling=yarn), {"text": 100_000})
    with pytest.raises(InputError, match=r"recipe.stages.b: model.rope_scaling.truncate=false"):
        check_networks(model, plan)


@pytest.mark.parametrize("base", [0.0, -1.0, float("nan")])
def test_a_base_is_above_0(base):
    with pytest.raises(InputError, match=r"recipe.stages.a.rope_theta=.*: expected more than 0"):
        TrainingRecipeConfig("r", 64, {"a": TrainingStageConfig(64, 640, rope_theta=base)})
    with pytest.raises(InputError, match=r"model.rope_theta=.*: expected more than 0"):
        ModelConfig("m", "llama", 64, 32, 32, 1, 2, 2, max_seq_len=64, rope_theta=base)
