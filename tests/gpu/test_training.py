"""Runs on a CUDA device: fp8 and compiled steps, memory."""

from __future__ import annotations

import gc
import gzip
import json

import pytest
import torch
import torch.nn.functional as F
import yaml

from model.attention.backends import usable_backends
from model.loss import linear_cross_entropy
from model.network import Decoder
from pretrain.fp8_checks import FP8_CAPABILITY
from pretrain.parallel.activation_checkpointing import MODES, apply_activation_checkpointing
from pretrain.planning.memory import Sizes, Work, parameter_shapes, plan_memory
from tests.model.shapes import initialize, tiny
from tests.runs import arguments, records, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CUDA = torch.device("cuda")
fp8_device = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY,
    reason="this GPU does not multiply fp8",
)


def run(command, corpus, run_dir, **changes):
    changes = {"device": "cuda", "precision": "bf16", "parallel__compile": "auto"} | changes
    done = command(*arguments(corpus.folder, run_dir, **changes))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def bf16(command, corpus, tmp_path_factory):
    return run(command, corpus, tmp_path_factory.mktemp("gpu") / "bf16")


def last_loss(run_dir):
    return records(run_dir, "validation")[-1]["loss"]


def test_the_attention_choice_was_timed(bf16):
    env = json.loads((bf16 / "env.json").read_text())
    for timing in env["attention"].values():
        tried = timing["seconds"].keys() | timing["failed"].keys()
        assert tried == set(usable_backends(CUDA, torch.bfloat16))
        assert timing["seconds"][timing["backend"]] == min(timing["seconds"].values())


@fp8_device
@pytest.mark.parametrize("precision", ["fp8", "fp8_rowwise"])
def test_fp8_trains_like_bf16(precision, bf16, command, corpus, tmp_path):
    """Compiled, as `parallel.compile=auto` is on a GPU."""
    run_dir = run(command, corpus, tmp_path / "run", precision=precision)
    compiled = yaml.safe_load((run_dir / "config.yaml").read_text())["parallel"]["compile"]
    assert compiled is True
    assert last_loss(run_dir) == pytest.approx(last_loss(bf16), rel=0.02)
    assert "recompile" not in [record["event"] for record in records(run_dir, "event")]


@pytest.mark.parametrize("attention", ["sdpa", "cudnn", "varlen", "fa3", "fa4", "flash", "flex"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_compiled_blocks_train_alike_on_every_backend(
    attention, mode, bf16, command, corpus, tmp_path
):
    if attention not in usable_backends(CUDA, torch.bfloat16):
        pytest.skip(f"attention={attention} is not here")
    changes = {
        "parallel__compile": "true",
        "parallel__attention": attention,
        "parallel__activation_checkpointing": mode,
    }
    run_dir = run(command, corpus, tmp_path / "run", **changes)
    assert last_loss(run_dir) == pytest.approx(last_loss(bf16), rel=0.02)
    assert "recompile" not in [record["event"] for record in records(run_dir, "event")]


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_cuda_graphs_take_the_same_steps(compiled, command, corpus, tmp_path):
    changes = {"parallel__attention": "sdpa", "parallel__compile": compiled}
    curves = [
        [
            (record["loss"], record["grad_norm"])
            for record in records(run(command, corpus, tmp_path / name, **changes, **more))
        ]
        for name, more in (("plain", {}), ("graphs", {"parallel__cuda_graphs": "true"}))
    ]
    assert len(curves[0]) == 20
    for plain, graph in zip(*curves, strict=True):
        assert graph == pytest.approx(plain, rel=5e-3)


def test_a_trace_and_a_memory_snapshot(command, corpus, tmp_path):
    changes = {"profile__steps": "[3,4]", "profile__memory": "true", "stop_after": 5}
    run_dir = run(command, corpus, tmp_path / "run", **changes)
    assert (run_dir / "profile" / "memory_steps_3-4_rank_0.pickle").stat().st_size > 1000
    with gzip.open(run_dir / "profile" / "trace_steps_3-4_rank_0.json.gz") as file:
        categories = {event.get("cat") for event in json.load(file)["traceEvents"]}
    assert "kernel" in categories


@pytest.mark.parametrize("mode", MODES)
def test_the_planned_memory_is_the_measured_peak(mode, command, corpus, tmp_path):
    """Within 10%. Memory outside of torch's allocator is not counted."""
    shape: dict[str, int | None] = {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_layers": 12,
    }
    shape |= {"num_heads": 12, "num_kv_heads": 4, "max_seq_len": 1024, "sliding_window": None}
    changes = {f"model__{key}": value for key, value in shape.items()} | {
        "recipe__stages__short__seq_len": 1024,
        "recipe__stages__long__seq_len": 1024,
        "recipe__global_batch_tokens": 32768,
        "recipe__stages__short__tokens": 65536,
        "recipe__stages__long__tokens": 32768,
        "parallel__micro_batch_tokens": 16384,
        "parallel__activation_checkpointing": mode,
        "parallel__compile": "false",
        "validation__every_steps": 0,
        "stop_after": 2,
    }
    measured = records(run(command, corpus, tmp_path / mode, **changes))[-1]["memory_peak_bytes"]
    model = settings(corpus.folder, tmp_path / mode, **changes).model
    work = Work("bf16", 16384, 1024, checkpointing=mode)
    planned = plan_memory(model, parameter_shapes(model), Sizes(), work)
    assert planned.total - planned.buffers == pytest.approx(measured, rel=0.1)


def peak(work):
    """Bytes that `work` allocates at most at once."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_chunked_loss_never_holds_the_logits():
    tokens, hidden, vocab = 16384, 256, 32000
    x = torch.randn(tokens, hidden, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab, hidden, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,), device=CUDA)
    whole = peak(lambda: F.cross_entropy((x @ weight.t()).float(), labels).backward())
    x.grad = weight.grad = None
    chunked = peak(lambda: linear_cross_entropy(x, weight, labels)[0].backward())
    assert whole > 4 * tokens * vocab  # float32 logits
    assert chunked < whole / 3


def test_each_checkpointing_mode_needs_less_memory():
    config = tiny(
        hidden_size=256, intermediate_size=768, num_heads=4, head_dim=64, num_layers=8,
        vocab_size=512, max_seq_len=1024,
    )  # fmt: skip
    tokens = torch.randint(0, 512, (8, 1024), device=CUDA)
    peaks, losses = {}, {}
    for mode in MODES:
        model = Decoder(config)
        initialize(model, config, 0)
        model.to(CUDA, torch.bfloat16)
        apply_activation_checkpointing(model, mode)

        def work(model=model, mode=mode):
            loss = model(tokens, tokens.roll(-1, 1))
            loss.backward()
            losses[mode] = loss.item()

        work()
        model.zero_grad()
        peaks[mode] = peak(work)
        del model, work
    assert losses["none"] == losses["selective"] == losses["full"]
    assert peaks["none"] > 1.3 * peaks["selective"] > 1.3 * 1.3 * peaks["full"]
