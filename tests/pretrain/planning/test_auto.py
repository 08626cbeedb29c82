"""`parallel=auto`: one choice for all ranks, with its reason, from the memory that is there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from conf.errors import InputError
from conf.text import GIB
from data_pipeline.sampling.recipe import StagePlan
from model.config import ModelConfig
from pretrain.config import ParallelConfig
from pretrain.planning.auto import (
    available_memory,
    pick_accumulation,
    pick_layout,
    settle_parallel,
)
from pretrain.planning.layouts import (
    LARGE_TOKENS,
    LARGE_TOKENS_ON_CPU,
    Machine,
    RunRequirements,
    candidates,
    choose,
    fit,
)
from pretrain.planning.memory import Sizes
from pretrain.processes import start
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig
from tests.model.test_counts import load
from tests.runs import arguments, ledger, records, settings

BIG = Machine(16, 8, 80 * GIB)


def need(model: ModelConfig, seq_lens=(2048,), batch=None, **changes) -> RunRequirements:
    parallel = ParallelConfig(auto=True, **changes)
    plan = None if batch is None else plan_of(batch, seq_lens)
    return RunRequirements(model, "bf16", "adamw", parallel, seq_lens, plan)


def plan_of(batch, seq_lens):
    """Ten steps of each sequence length."""
    stages = {f"s{n}": TrainingStageConfig(n, 10 * batch) for n in seq_lens}
    return StagePlan(TrainingRecipeConfig("r", batch, stages), {"all": 10**9})


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


def test_blank_samples_are_weighed_with_what_else_a_layout_costs():
    """Danube's 72 sequences of 16,384 fit on 8 ranks.

    On 64 processes it costs less to share sequences than to fill 128 rows, as 64 ranks would.
    """
    asked = need(load("danube_1_8b"), (2048, 4096, 8192, 16384), 1_179_648)
    chosen = choose(asked, Machine(8, 8, 80 * GIB))
    assert (chosen.name, chosen.blank) == ("replicate", 0)
    assert chosen.parallel.micro_batch_tokens == 16384
    found = candidates(asked, Machine(64, 8, 80 * GIB))
    by_name = {option.name: option for option in found}
    # 10, 11, 20 and 44% of rows are blank in the stages: 9, 5, 3 and 2 of 576, 288, 144 and 72.
    computed = 4 * 1_179_648 / (1_179_648 + 64 * 16384 * (5 / 4 + 3 / 2 + 2))
    assert by_name["FSDP 64"].blank == pytest.approx(1 - computed)
    assert found[0].blank < by_name["FSDP 64"].blank
    assert found[0].parallel.cp * found[0].parallel.tp > 1
    seven = choose(asked, Machine(7, 7, 80 * GIB))
    assert seven.name == "replicate"
    assert 0 < seven.blank < 0.07


def test_the_micro_batch_that_leaves_the_fewest_blank():
    """72 sequences on 16 ranks are 5 on some ranks.

    With micro-batches of 4 they would be 6 rows; with 5, or 1, they are 5.
    """
    model = load("small_15m")
    asked = need(model, (4096,), 72 * 4096)
    sizes = Sizes(1, 16)
    whole = fit(asked, sizes, Machine(16, 8, 80 * GIB))
    assert whole.parallel.micro_batch_tokens == 5 * 4096
    assert whole.blank == pytest.approx(0.1)
    needed = fit(replace(asked, parallel=ParallelConfig(micro_batch_tokens=4 * 4096)), sizes, BIG)
    assert needed.blank == pytest.approx(1 - 72 / 96)
    assert needed.memory is not None
    tight = Machine(16, 8, int(needed.memory.total / 0.95) + 1)
    found = fit(asked, sizes, tight)
    assert found.blank == pytest.approx(0.1)
    assert found.parallel.micro_batch_tokens == 4096


def test_a_micro_batch_of_sequences_that_do_not_divide_each_other():
    """The least common multiple of the lengths would be 128,000 tokens."""
    asked = need(load("small_15m"), (1000, 1024), 1_024_000)
    alone = Machine(1, 1, 80 * GIB)
    tokens = fit(asked, Sizes(), alone).parallel.micro_batch_tokens
    assert 16_384 < tokens <= LARGE_TOKENS
    on_cpu = replace(alone, device="cpu")
    assert fit(asked, Sizes(), on_cpu).parallel.micro_batch_tokens <= LARGE_TOKENS_ON_CPU


def test_gradients_are_accumulated_in_shards_where_whole_ones_do_not_fit():
    asked = need(load("mistral_7b"), (4096,), 64 * 4 * 4096, micro_batch_tokens=4096)
    sizes = Sizes(1, 64)
    whole = fit(asked, sizes, Machine(64, 8, 141 * GIB))
    assert whole.problem is None
    assert whole.memory is not None
    assert whole.parallel.sharded_accumulation is False
    tight = Machine(64, 8, int(whole.memory.total / 0.95) - 1)
    sharded = fit(asked, sizes, tight)
    assert sharded.problem is None
    assert sharded.memory is not None
    assert sharded.parallel.sharded_accumulation is True
    assert whole.memory.unreduced - sharded.memory.unreduced > 20 * GIB
    # It costs less than to recompute activations, and an explicit choice is kept.
    assert choose(asked, tight).parallel.activation_checkpointing == "none"
    never = replace(asked, parallel=replace(asked.parallel, sharded_accumulation=False))
    assert fit(never, sizes, tight).problem is not None
    replicas = fit(asked, Sizes(64), replace(tight, memory_bytes=GIB))
    assert replicas.parallel.sharded_accumulation is False  # it would save nothing


def test_how_gradients_are_accumulated_is_settled_and_kept(corpus, tmp_path, monkeypatch):
    config = settings(corpus.folder, tmp_path)
    plan = plan_of(2048, (64, 128))
    processes = start("cpu")

    def settled(memory_bytes):
        machine = Machine(2, 2, memory_bytes, "cpu")
        monkeypatch.setattr("pretrain.planning.auto.measure_machine", lambda processes: machine)
        config.parallel = replace(config.parallel, sharded_accumulation="auto")
        why = pick_accumulation(config, plan, Sizes(1, 2), processes)
        return config.parallel.sharded_accumulation, why

    try:
        assert settled(GIB) == (False, [])
        sharded, (why,) = settled(1 << 20)
        assert sharded is True
        assert why.startswith("parallel.sharded_accumulation=auto selects true: whole gradients")
        # A run that is resumed in the same layout keeps it, whatever memory there is.
        (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
        then = {"parallel": asdict(config.parallel) | {"sharded_accumulation": True}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(then))
        (tmp_path / "env.json").write_text('{"world_size": 1, "device_type": "cpu"}')
        config.parallel = replace(config.parallel, sharded_accumulation="auto")
        settle_parallel(config, plan, processes)
        assert config.parallel.sharded_accumulation is True
    finally:
        dist.destroy_process_group()


def test_what_does_not_fit_is_said():
    with pytest.raises(
        InputError, match=r"no layout fits into memory. The smallest, .* needs .* GiB"
    ):
        choose(need(load("mistral_7b")), Machine(2, 2, 24 * GIB))


def test_sizes_that_are_given_too_are_refused(corpus, tmp_path):
    config = settings(corpus.folder, tmp_path, parallel="auto", parallel__tp=2)
    recipe = TrainingRecipeConfig("r", 2048, {"s": TrainingStageConfig(64, 2048)})
    machine = Machine(1, 1, 1 << 40, "cpu")
    with pytest.raises(InputError, match=r"parallel.tp=2: parallel=auto chooses this size"):
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
    assert "error: parallel=auto: no layout fits into memory" in done.stderr
    assert not run_dir.exists()


def test_a_run_says_why_and_a_resumed_one_may_choose_another(command, corpus, tmp_path):
    run_dir, plain = tmp_path / "run", tmp_path / "plain"
    auto = {"parallel": "auto", "parallel__micro_batch_tokens": "auto"}
    done = command(*arguments(corpus.folder, run_dir, stop_after=5, **auto), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parallel=auto selects replicate: dp_replicate=2 x dp_shard=1") == 1
    written = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
    assert (written["dp_replicate"], written["dp_shard"], written["auto"]) == (2, 1, True)
    assert written["micro_batch_tokens"] == 1024
    why = json.loads((run_dir / "env.json").read_text())["layout"]
    assert "parallel=auto selects replicate" in why[0]
    done = command(*arguments(corpus.folder, run_dir, stop_after=8, **auto))
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
    assert (written["dp_replicate"], written["micro_batch_tokens"]) == (1, 2048)
    done = command(*arguments(corpus.folder, plain, stop_after=8))
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(plain)
    ours = [record["loss"] for record in records(run_dir)]
    assert ours == pytest.approx([record["loss"] for record in records(plain)], rel=1e-4)


def test_a_micro_batch_is_kept_until_the_layout_changes(command, corpus, tmp_path):
    """The choice of `auto` is printed, and recorded in config.yaml and env.json."""
    run_dir = tmp_path / "run"
    default: dict[str, Any] = {
        f"parallel__{key}": "auto" for key in ("micro_batch_tokens", "compile")
    }
    default |= {"checkpoint__every_steps": 2, "validation__every_steps": 0}

    def start(stop, processes, **changes):
        args = arguments(corpus.folder, run_dir, stop_after=stop, **default | changes)
        done = command(*args, processes=processes)
        assert done.returncode == 0, done.stderr
        written = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]
        why = json.loads((run_dir / "env.json").read_text())["layout"]
        assert all(sentence in done.stdout for sentence in why)
        assert written["sharded_accumulation"] is False
        return written["micro_batch_tokens"], written["compile"], why

    tokens, compiled, why = start(2, 1, parallel__micro_batch_tokens=256)
    assert (tokens, compiled) == (256, False)
    assert why == [
        "parallel.compile=auto does not compile: on a CPU, compiled blocks are not faster in fp32."
    ]
    tokens, _, why = start(4, 1)
    assert tokens == 256
    assert "parallel.micro_batch_tokens=auto keeps 256, the value at the run's last start." in why
    tokens, _, why = start(6, 3)
    assert tokens == 768  # 11 of 32 sequences of 64, and 6 of 16 of 128
    assert any(
        reason.startswith("parallel.micro_batch_tokens=auto selects 768: ") for reason in why
    )
    assert any("of the computed sequences are blank" in reason for reason in why)
    assert json.loads((run_dir / "env.json").read_text())["blank_share"] == pytest.approx(
        1 - 4096 / (33 * 64 + 18 * 128)
    )
    plain = tmp_path / "plain"
    done = command(*arguments(corpus.folder, plain, stop_after=6))
    assert done.returncode == 0, done.stderr
    assert ledger(run_dir) == ledger(plain)


def test_a_model_that_does_not_fit_is_warned_of_not_refused(corpus, tmp_path, monkeypatch):
    """The plan is an estimate; the memory that is free, a moment's."""
    monkeypatch.setattr("pretrain.planning.auto.available_memory", lambda: 1 << 20)
    config = settings(corpus.folder, tmp_path, parallel__micro_batch_tokens="auto")
    processes = start("cpu")
    try:
        why = settle_parallel(config, plan_of(2048, (64, 128)), processes)
    finally:
        dist.destroy_process_group()
    assert config.parallel.micro_batch_tokens == 128
    assert why[0].startswith("warning: parallel.micro_batch_tokens=auto selects 128, the smallest")
