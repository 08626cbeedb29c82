"""The plan against published runs, and against itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError
from launch.plan import tables
from launch.plan.cluster import ClusterConfig
from launch.plan.config import PlanConfig
from launch.plan.outlook import make_outlook
from launch.plan.page import render_plan
from launch.plan.speed import Step, step_time
from model.config import ModelConfig
from model.flops import parameters
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.recipe import TrainingRecipeConfig, TrainingStageConfig


def chosen(group, name, schema):
    stated = OmegaConf.load(CONF_DIR / group / f"{name}.yaml")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), stated))


def cluster(name, nodes=1):
    return replace(chosen("cluster", name, ClusterConfig), nodes=nodes)


def model(name):
    return chosen("model", name, ModelConfig)


def mpt(hidden, layers):
    """MPT's shapes in ours: its two MLP matrices of 4 x hidden weigh as three of 8/3 x hidden."""
    heads = hidden // 128
    inner = round(hidden * 8 / 3)
    return ModelConfig(
        "mpt", "llama", 50368, hidden, inner, layers, heads, heads, 128, 65536, tie_embeddings=True
    )


def config(**changes):
    base = PlanConfig(
        model=model("danube_1_8b"),
        recipe=chosen("recipe", "danube_1t", TrainingRecipeConfig),
        optim=OptimConfig(learning_rate=1e-3),
        parallel=ParallelConfig(),
        cluster=cluster("h100"),
    )
    return replace(base, **changes)


def sharded(ranks, micro_batch_tokens, reshard=True):
    return ParallelConfig(
        1, ranks, micro_batch_tokens=micro_batch_tokens, reshard_after_forward=reshard
    )


MPT_1B, MPT_3B, MPT_7B = mpt(2048, 24), mpt(2560, 32), mpt(4096, 32)
H100, A100 = "h100", "a100_80"
PUBLISHED = {
    # name: shape, sequence, micro-batch in sequences, micro-batches, precision, cluster, nodes,
    # gathered again for backward, tokens/s a GPU
    "MPT-1.3B 8 H100": (MPT_1B, 2048, 14, 1, "bf16", H100, 1, True, 45_455),
    "MPT-1.3B 64 H100": (MPT_1B, 2048, 20, 1, "bf16", H100, 8, True, 44_402),
    "MPT-1.3B 128 H100": (MPT_1B, 2048, 12, 1, "bf16", H100, 16, False, 44_123),
    "MPT-1.3B 256 H100": (MPT_1B, 2048, 12, 1, "bf16", H100, 32, False, 42_555),
    "MPT-1.3B 512 H100": (MPT_1B, 2048, 12, 1, "bf16", H100, 64, False, 39_837),
    "MPT-1.3B 8192 8 H100": (MPT_1B, 8192, 3, 4, "bf16", H100, 1, True, 29_157),
    "MPT-1.3B 8192 8 H100 fp8": (MPT_1B, 8192, 2, 4, "fp8", H100, 1, True, 32_010),
    "MPT-2.7B 16 H100": (MPT_3B, 2048, 10, 3, "bf16", H100, 2, True, 24_142),
    "MPT-2.7B 8 H100 fp8": (MPT_3B, 2048, 10, 6, "fp8", H100, 1, True, 30_586),
    "MPT-7B 8 H100": (MPT_7B, 2048, 6, 1, "bf16", H100, 1, True, 10_643),
    "MPT-7B 128 H100": (MPT_7B, 2048, 6, 1, "bf16", H100, 16, True, 10_475),
    "MPT-7B 512 H100": (MPT_7B, 2048, 6, 1, "bf16", H100, 64, True, 9_670),
    "MPT-1.3B 8 A100": (MPT_1B, 2048, 20, 3, "bf16", A100, 1, True, 20_513),
    "TinyLlama 16 A100": (None, 2048, 8, 8, "bf16", "a100_40", 2, True, 24_000),
}
"""llm-foundry, scripts/train/benchmarking/README.md; TinyLlama, README.md (its batch of 2M tokens,
micro-batches of 8)."""


def planned_rates(name):
    """tokens/s a GPU, usual and best."""
    shape, seq_len, sequences, micro_batches, precision, gpu, nodes, reshard, _ = PUBLISHED[name]
    machines = cluster(gpu, nodes)
    ranks, micro = machines.world_size, sequences * seq_len
    batch = micro * micro_batches * ranks
    shape = shape or model("tinyllama_1_1b")
    step = Step(shape, seq_len, batch, precision, sharded(ranks, micro, reshard))
    return tuple(batch / step_time(step, machines, b).total / ranks for b in (False, True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_speeds_are_in_the_range(name):
    """5% grace at the usual end: old stacks."""
    usual, best = planned_rates(name)
    assert 0.95 * usual <= PUBLISHED[name][-1] <= best
    assert best < 1.9 * usual


@pytest.mark.parametrize(
    ("ranks", "efficiency"), [(64, 0.977), (128, 0.971), (256, 0.936), (512, 0.876)]
)
def test_scaling_of_mpt(ranks, efficiency):
    usual = planned_rates(f"MPT-1.3B {ranks} H100")[0] / planned_rates("MPT-1.3B 8 H100")[0]
    assert usual == pytest.approx(efficiency, abs=0.025)


def test_sizes_of_mpt():
    assert parameters(MPT_1B) == pytest.approx(1.316e9, rel=0.01)
    assert parameters(MPT_7B) == pytest.approx(6.659e9, rel=0.01)


def test_danubes_trillion():
    """39.5 days and 7,592 GPU-hours at 36.6k tokens/s per GPU, with the blocks in fp8.

    Plain data parallelism is first, because it fits.
    """
    outlook = make_outlook(config(precision="fp8"))
    assert outlook.best.option.name == "replicate"
    assert outlook.days.low < 39.5 < outlook.days.high
    assert outlook.gpu_hours.low < 7592 < outlook.gpu_hours.high
    assert make_outlook(config()).best.option.name == "replicate"
    assert outlook.reliability.checkpoint_bytes == pytest.approx(22.0e9, rel=0.01)
    assert outlook.reliability.interval_seconds == pytest.approx(4.7 * 3600, rel=0.02)


def test_tinyllamas_three_trillion():
    """About 90 days on 16 A100 of 40 GB."""
    recipe = TrainingRecipeConfig(
        "tinyllama", 2**21, {"all": TrainingStageConfig(2048, 3 * 10**12)}
    )
    outlook = make_outlook(
        config(model=model("tinyllama_1_1b"), recipe=recipe, cluster=cluster("a100_40", 2))
    )
    assert outlook.days.low < 90 < outlook.days.high


def test_the_numbers_agree_with_each_other():
    outlook = make_outlook(config(cluster=cluster("h100", 9)))
    world = 72
    for layout in outlook.layouts:
        for stage in layout.stages:
            for rate, days in (
                (stage.tokens_per_second.low, stage.days.high),
                (stage.tokens_per_second.high, stage.days.low),
            ):
                assert rate * days * 86_400 == pytest.approx(stage.stage.tokens)
            mfu = stage.flops_per_token * stage.tokens_per_second.low / (989.4e12 * world)
            assert stage.mfu.low == pytest.approx(mfu)
            assert 0 < stage.mfu.low < stage.mfu.high < 0.75
            assert 0 < stage.scaling_efficiency <= 1
    assert outlook.gpu_hours.low == pytest.approx(outlook.days.low * 24 * world)
    assert outlook.cost.low == pytest.approx(outlook.gpu_hours.low * 2.5)
    assert outlook.energy_kwh.low == pytest.approx(outlook.gpu_hours.low)


@pytest.mark.parametrize("part", [0.5, 0.99])
def test_a_branch_is_planned_from_its_fork_on(part):
    whole = make_outlook(config())
    fork = int(whole.plan.total_steps * part)
    outlook = make_outlook(config(), fork)
    assert outlook.tokens == whole.plan.total_tokens - whole.plan.tokens_at(fork)
    assert outlook.steps == whole.plan.total_steps - fork
    shares = [plan.tokens / plan.stage.tokens for plan in outlook.best.stages]
    before = whole.best.stages[-len(shares) :]
    expected = [one.days.typical * share for one, share in zip(before, shares, strict=True)]
    assert [one.days.typical for one in outlook.best.stages] == pytest.approx(expected)
    assert shares[1:] == [1.0] * (len(shares) - 1)
    shown = {name: value for name, value, _ in tables.totals(outlook)}
    assert f"after step {fork:,} of the trunk" in shown["tokens"]


def test_more_communication_never_helps():
    """A slower network never makes a layout faster, and tensor parallelism over it hurts most."""
    fast, slow = cluster("h100", 2), replace(cluster("h100", 2), inter_node_gb_s=1.0)
    shape = model("danube_1_8b")
    for layout in (
        ParallelConfig(2, 8, micro_batch_tokens=16384),
        ParallelConfig(1, 16, micro_batch_tokens=16384),
        ParallelConfig(1, 1, tp=16, micro_batch_tokens=16384),
    ):
        step = Step(shape, 2048, 2**20, "bf16", layout)
        assert step_time(step, slow, False).exposed > step_time(step, fast, False).exposed


def test_what_does_not_fit_is_refused():
    one = replace(cluster("a100_40"), gpus_per_node=1)
    with pytest.raises(InputError, match=r"mistral_7b: no layout fits 1 x A100 .* needs \d+\.\d"):
        make_outlook(config(model=replace(model("mistral_7b"), max_seq_len=16384), cluster=one))
    with pytest.raises(
        InputError, match=r"precision=fp8: not supported on .*\. Use precision=bf16"
    ):
        config(precision="fp8", cluster=one)
    for change, said in (
        ({"matmul": [0.8, 0.5]}, r"cluster.matmul=\[0.8, 0.5\]: expected \[typical, best\]"),
        ({"gpu_memory_gib": float("nan")}, "cluster.gpu_memory_gib=nan: expected a number above 0"),
        ({"gpu_hour_price": -1.0}, "cluster.gpu_hour_price=-1.0: expected 0 or more"),
        ({"device": "tpu"}, "cluster.device=tpu: unknown choice"),
    ):
        with pytest.raises(InputError, match=said):
            replace(one, **change)


def test_warnings(corpus):
    short = TrainingRecipeConfig("short", 2**16, {"all": TrainingStageConfig(2048, 10**6)})
    found = make_outlook(config(recipe=short, cluster=cluster("h100", 8), data=str(corpus.folder)))
    said = "\n".join(found.warnings)
    assert (
        "model.sliding_window=4096 has no effect, because the longest sequence has only 2,048"
        in said
    )
    assert "Source 'code' is read" in said
    uneven = TrainingRecipeConfig("uneven", 17 * 2048, {"all": TrainingStageConfig(2048, 10**6)})
    found = make_outlook(config(recipe=uneven, cluster=cluster("h100", 2)))
    layouts = {layout.option.name: layout for layout in found.layouts}
    assert layouts["FSDP 16"].option.blank == pytest.approx(1 - 17 / 32)
    assert layouts["FSDP 16"].stages[0].deal.computed == 32
    best = found.best.option
    assert best.blank < 1 - 17 / 32
    assert (
        f"In the layout {best.name}, {best.blank:.1%} of the computed sequences are blank, "
        "because the batch cannot be divided evenly among the ranks (stage 'all': 17 samples per "
    ) in "\n".join(found.warnings)
    small = TrainingRecipeConfig("small", 2**15, {"all": TrainingStageConfig(512, 10**6)})
    found = make_outlook(config(recipe=small, cluster=cluster("h100", 8)))
    assert "Each GPU forwards 2,048 tokens at a time" in "\n".join(found.warnings)
    assert not make_outlook(config()).warnings


def test_a_measurement_makes_the_range_narrow(tmp_path):
    """The shape that was measured is planned as it was measured."""
    path = Path(measured(tmp_path, ((2048, 45_000.0), (16384, 33_000.0))))
    one = replace(cluster("h200"), gpus_per_node=1)
    outlook = make_outlook(config(cluster=one, calibration=str(path)))
    for stage, speed in zip(outlook.best.stages[::3], (45_000, 33_000), strict=True):
        rate = stage.tokens_per_second
        assert rate.low == pytest.approx(speed, rel=0.07)
        assert rate.high == pytest.approx(speed, rel=0.07)
        assert rate.low < rate.high
    with pytest.raises(InputError, match="calibration: the file has no run with precision=fp8"):
        make_outlook(config(cluster=one, calibration=str(path), precision="fp8"))
    path.write_text("[]")
    with pytest.raises(
        InputError, match="expected a list 'runs' of entries with the keys batch_tokens"
    ):
        make_outlook(config(cluster=one, calibration=str(path)))


def test_measured_memory_and_launches_change_the_plan(tmp_path):
    one = replace(cluster("h200"), gpus_per_node=1)
    path = measured(tmp_path)
    before = make_outlook(config(cluster=one, calibration=path)).best
    kinds = [
        {"checkpointing": "none", "compiled": True, "activation_ratio": 0.5},
        {"checkpointing": "none", "compiled": True, "activation_ratio": 0.4},
        {"checkpointing": "none", "compiled": False, "activation_ratio": 3.0},
    ]
    found = json.loads(Path(path).read_text()) | {"memory": kinds}
    Path(path).write_text(json.dumps(found))
    outlook = make_outlook(config(cluster=one, calibration=path))
    planned, scaled = before.option.memory, outlook.best.option.memory
    assert planned is not None
    assert scaled is not None
    assert before.option.parallel == outlook.best.option.parallel
    assert (scaled.activations, scaled.loss) == (planned.activations // 2, planned.loss // 2)
    assert scaled.state == planned.state
    assert tables.memory(outlook).columns["activations"] == "measured"

    step = before.stages[0].times[1]
    assert step.launch == 0
    count = before.stages[0].deal.micro_batches * 24
    launches = [{"precision": "bf16", "layer_seconds": 2 * step.compute / count}]
    Path(path).write_text(json.dumps(found | {"launches": launches}))
    outlook = make_outlook(config(cluster=one, calibration=path))
    assert outlook.best.stages[0].times[1].total == pytest.approx(2 * step.compute)
    assert "takes the host longer than the GPU needs" in "\n".join(outlook.warnings)
    Path(path).write_text(json.dumps(found | {"launches": [{"precision": "bf16"}]}))
    with pytest.raises(InputError, match="expected a list 'runs'"):
        make_outlook(config(cluster=one, calibration=path))


SURE = {"exact", "measured", "assumed"}


def test_each_number_says_how_sure_it_is(tmp_path):
    """Every layout that fits has labels, on the page too, not only those in the terminal."""
    outlook = make_outlook(config(show=1))
    for _, _, sure in tables.totals(outlook):
        assert sure.split(",")[0] in SURE
    grids = [tables.layouts(outlook), tables.stages(outlook), tables.memory(outlook)]
    for grid in grids:
        assert set(list(grid.columns.values())[1:]) <= SURE | {"chosen"}
        assert all(len(row) == len(grid.columns) for row in grid.rows)
    assert [len(grid.rows) for grid in grids] == [len(outlook.layouts), 4, len(outlook.layouts)]
    written = render_plan(outlook)
    for grid in grids:
        for name, sure in list(grid.columns.items())[1:]:
            assert f">{name}<small>{sure}</small>" in written
        for row in grid.rows:
            assert all(f">{cell}</t" in written for cell in row)
    calibrated = make_outlook(config(calibration=measured(tmp_path)))
    assert tables.stages(calibrated).columns["step, s"] == "measured"
    assert {what: sure for what, _, sure in tables.totals(calibrated)}["days"] == "measured"


def measured(folder, speeds=((2048, 45_000.0),)):
    """A file of speeds of Danube."""
    shape = OmegaConf.to_container(OmegaConf.structured(model("danube_1_8b")))
    runs = [
        {
            "model": shape,
            "seq_len": seq_len,
            "precision": "bf16",
            "batch_tokens": 2**20,
            "tokens_per_second": speed,
        }
        for seq_len, speed in speeds
    ]
    path = folder / "measured.json"
    path.write_text(json.dumps({"gpu": "H200", "runs": runs}))
    return str(path)


def test_auto_takes_what_the_cluster_multiplies():
    assert config().precision == "bf16"
    laptop = config(precision="auto", cluster=cluster("laptop"), model=model("demo_12m"))
    assert laptop.precision == "fp32"
    with pytest.raises(InputError, match="precision=bf16: not supported on two CPU cores"):
        config(precision="bf16", cluster=cluster("laptop"))
    with pytest.raises(InputError, match=r"cluster\.bf16_tflops=0 cluster\.fp32"):
        replace(cluster("laptop"), fp32_tflops=0)


def test_fp32_is_planned_with_its_own_peak():
    found = replace(cluster("h100"), fp32_tflops=0)
    assert found.peak_flops("bf16") == found.peak_flops("fp8") == 989.4e12
    assert found.peak_flops("fp32") == 989.4e12 / 16  # where a file does not say
    assert cluster("laptop").peak_flops("fp32") == 0.12e12
    times = {}
    for precision in ("bf16", "fp32"):
        step = Step(model("danube_1_8b"), 2048, 2**20, precision, sharded(8, 16384))
        times[precision] = step_time(step, cluster("h100"), True)
    assert times["fp32"].matmul / times["bf16"].matmul == pytest.approx(989.4 / 66.9)
    assert times["fp32"].elementwise == pytest.approx(2 * times["bf16"].elementwise)


def test_the_command(command, tmp_path):
    done = command(
        "launch", "plan", f"out={tmp_path / 'plan.html'}", "nodes=8", "cluster.gpu_memory_gib=30"
    )
    assert (done.returncode, done.stderr) == (0, "")
    for said in (
        "HSDP 8x",
        "GPU-hours",
        "assumed",
        "exact",
        "blank",
    ):
        assert said in done.stdout
    written = (tmp_path / "plan.html").read_text()
    assert "http" not in written.replace("http://www.w3.org", "")
    for said in (
        "Timeline by stage",
        "Layouts that do not fit",
        "s16k (16,384)",
        "GFLOP per token",
    ):
        assert said in written
    done = command(
        "launch",
        "plan",
        "model=mistral_7b",
        "model.max_seq_len=16384",
        "cluster=a100_40",
        "cluster.gpus_per_node=1",
    )
    assert done.returncode == 2
    assert "model=mistral_7b: no layout fits 1 x A100 SXM 40 GB" in done.stderr


def test_the_plan_of_a_training_command(command, corpus, tmp_path):
    """On a cluster of one's own: it stands for no default, and the run's keys for all."""
    mine = tmp_path / "mine.yaml"
    stated = OmegaConf.load(CONF_DIR / "cluster" / "a100_80.yaml")
    mine.write_text(OmegaConf.to_yaml({**stated, "name": "mine", "gpu": "A100 of: ours, 'x'"}))
    training = ("model=small_50m", "recipe=demo", "optim=muon", f"data.folder={corpus.folder}")
    more = ("precision=fp32", "data.max_epochs=9")
    done = command("launch", "plan", f"cluster={mine}", "nodes=2", "--", *training, *more)
    assert done.returncode == 0, done.stderr
    head = done.stdout.splitlines()[0]
    assert head.startswith("small_50m, recipe demo, fp32, on 2 x 8 A100 of: ours, 'x'")
    assert "epochs of prose" in done.stdout
    away = command("launch", "plan", "cluster=h100", "--", "data.folder=nowhere")
    assert "data.folder=nowhere: not on this machine. The plan does not use the size" in away.stdout
    mine.write_text("gpu: ours\nname: mine")
    for given, said in (
        ((f"cluster={mine}",), "cluster.bf16_tflops has no value. Give"),
        (("model=demo_12m", "--", "seed=1"), "model=demo_12m is a key of the training run. Put it"),
        (
            ("cluster=h100", "--", *training, "data.max_epochs=1e-3"),
            "data.max_epochs=0.001: the recipe reads",
        ),
        (
            ("cluster=h100", "--", *training, "parallel.tp=3"),
            "does not match the number of processes, 8",
        ),
        (
            ("model=demo_12m", "recipe=danube_1t"),
            "s2k.seq_len=2048: expected at most model.max_seq_len",
        ),
        (("--", "sead=1"), "sead is not a key of this config (did you mean 'seed'?)"),
    ):
        refused = command("launch", "plan", *given)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_the_size_of_a_cache_of_answers_is_stated():
    taught = {"name": "distill", "teacher_cache": "answers", "top_k": 64}
    outlook = make_outlook(config(objective=taught))
    shown = {name: value for name, value, _ in tables.totals(outlook)}
    tokens = outlook.plan.total_tokens
    assert 258 * tokens < outlook.answer_bytes < 258.1 * tokens  # 64 ids, 65 codes of 2 bytes
    assert "258.0 bytes per token" in shown["teacher's answers, if cached"]
    assert make_outlook(config()).answer_bytes == 0


def test_a_plan_says_the_parametrization():
    known = {name: value for name, value, _ in tables.totals(make_outlook(config()))}
    assert "parametrization" not in known
    base = {"parametrization": "completep", "base_hidden_size": 640, "base_num_layers": 6}
    scaled = replace(model("danube_1_8b"), **base)
    shown = {name: value for name, value, _ in tables.totals(make_outlook(config(model=scaled)))}
    assert shown["parametrization"].startswith("completep, base of 6 layers of 640 (width times 4")
