"""`parallel=auto`: one choice for all ranks, with its reason, from the memory that is there."""

from __future__ import annotations

import json

import pytest
import yaml

from conf.errors import InputError
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from model.config import ModelConfig
from pretrain.auto_layout import available_memory, pick_layout
from pretrain.config import ParallelConfig
from pretrain.layout_choice import GIB, Machine, Need, choose
from tests.model.test_counts import load
from tests.runs import arguments, ledger, records, settings


def need(model: ModelConfig, seq_lens=(2048,), batch=None, **changes) -> Need:
    parallel = ParallelConfig(auto=True, **changes)
    return Need(model, "bf16", "adamw", parallel, seq_lens, batch)


def test_it_takes_the_simplest_that_fits():
    danube, mistral = load("danube_1_8b"), load("mistral_7b")
    chosen = choose(need(danube), Machine(8, 8, 80 * GIB))
    assert chosen.name == "replicate"
    assert (chosen.parallel.dp_replicate, chosen.parallel.dp_shard) == (8, 1)
    assert chosen.parallel.micro_batch_tokens == 16384
    assert choose(need(danube), Machine(8, 8, 24 * GIB)).name == "FSDP 8"
    chosen = choose(need(mistral), Machine(64, 8, 80 * GIB))
    assert chosen.name.startswith(("HSDP", "FSDP"))
    assert (chosen.parallel.cp, chosen.parallel.tp) == (1, 1)
    assert choose(need(danube), Machine(1, 1, 141 * GIB)).name == "one process"
    least = need(danube, activation_checkpointing="full")
    chosen = choose(least, Machine(8, 8, 80 * GIB))
    assert chosen.parallel.activation_checkpointing == "full"


def test_a_batch_is_dealt_out_as_the_recipe_says():
    """Danube's 72 sequences of 16384 go to 8 ranks, not to 64: the others share sequences."""
    asked = need(load("danube_1_8b"), (2048, 4096, 8192, 16384), 1_179_648)
    assert choose(asked, Machine(8, 8, 80 * GIB)).parallel.micro_batch_tokens == 16384
    chosen = choose(asked, Machine(64, 8, 80 * GIB)).parallel
    assert chosen.dp_replicate * chosen.dp_shard == 8
    assert chosen.cp * chosen.tp == 8
    with pytest.raises(InputError, match="72 sequences of 16384, which cannot be dealt evenly to"):
        choose(asked, Machine(7, 7, 80 * GIB))


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match=r"no layout that fits: the smallest, .* needs .* GiB"):
        choose(need(load("mistral_7b")), Machine(2, 2, 24 * GIB))


def test_sizes_that_are_given_too_are_refused(corpus, tmp_path):
    config = settings(corpus.folder, tmp_path, parallel="auto", parallel__tp=2)
    recipe = RecipeConfig("r", 2048, {"s": StageConfig(64, 2048)})
    machine = Machine(1, 1, 1 << 40, "cpu")
    with pytest.raises(InputError, match=r"parallel.tp=2 is given, but parallel=auto picks it"):
        pick_layout(config, StagePlan(recipe, {"a": 10_000}), machine)


def test_memory_of_this_machine_is_known():
    assert GIB // 16 < available_memory() < 1 << 46


def test_nothing_is_written_where_nothing_fits(command, corpus, tmp_path):
    run_dir = tmp_path / "run"
    changes = {
        "parallel": "auto",
        "model__hidden_size": 65536,
        "model__intermediate_size": 1_048_576,
        "model__num_layers": 64,
    }
    done = command(*arguments(corpus.folder, run_dir, **changes))
    assert done.returncode == 2, done.stderr
    assert "error: parallel=auto finds no layout that fits" in done.stderr
    assert not run_dir.exists()


def test_a_run_says_why_and_a_resumed_one_may_choose_another(command, corpus, tmp_path):
    run_dir, plain = tmp_path / "run", tmp_path / "plain"
    done = command(*arguments(corpus.folder, run_dir, parallel="auto", stop_after=5), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parallel=auto takes replicate: dp_replicate=2 x dp_shard=1") == 1
    written = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
    assert (written["dp_replicate"], written["dp_shard"], written["auto"]) == (2, 1, True)
    assert written["micro_batch_tokens"] == 1024
    why = json.loads((run_dir / "env.json").read_text())["layout"]
    assert "parallel=auto takes replicate" in why[0]
    done = command(*arguments(corpus.folder, run_dir, parallel="auto", stop_after=8))
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
    assert (written["dp_replicate"], written["micro_batch_tokens"]) == (1, 2048)
    done = command(*arguments(corpus.folder, plain, stop_after=8))
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(plain)
    ours = [record["loss"] for record in records(run_dir)]
    assert ours == pytest.approx([record["loss"] for record in records(plain)], rel=1e-4)
