"""NorMuon against the paper's algorithm, and over layouts, a resume and the plan of memory."""

from __future__ import annotations

import pytest
import torch

from model.network import Decoder
from pretrain.checks import check_layout
from pretrain.config import OptimConfig, ParallelConfig
from pretrain.optim import build_optimizer
from pretrain.optim.newton_schulz import orthogonalized, polynomials
from pretrain.planning.fake_ranks import fake_ranks, state_bytes
from pretrain.planning.memory import Sizes, Work, parameter_shapes, plan_memory
from tests.model.shapes import tiny
from tests.runs import arguments, records

RATE, DECAY, MOMENTUM, ROW_BETA, STEPS = 0.02, 0.1, 0.95, 0.9, 5


def reference(weight, gradients):
    """Algorithm 1 of the paper with Nesterov's momentum, on one whole matrix."""
    momentum, squares = torch.zeros_like(weight), torch.zeros(len(weight), 1)
    rows, columns = weight.shape
    for gradient in gradients:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        nesterov = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        update = orthogonalized(nesterov[None], polynomials("jordan", STEPS))[0]
        squares = ROW_BETA * squares + (1 - ROW_BETA) * (update * update).mean(1, keepdim=True)
        update = update / (squares.sqrt() + 1e-8)
        rate = 0.2 * RATE * (rows * columns) ** 0.5 / torch.linalg.matrix_norm(update)
        weight = weight - RATE * DECAY * weight - rate * update
    return weight


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_steps_are_those_of_the_paper(shape):
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.layers = torch.nn.Linear(shape[1], shape[0], bias=False)
    before = model.layers.weight.detach().clone()
    gradients = [torch.randn(shape) * torch.rand(shape[0], 1) for _ in range(5)]
    options = {"momentum": MOMENTUM, "row_beta": ROW_BETA, "ns_steps": STEPS}
    config = OptimConfig("normuon", RATE, weight_decay=DECAY, options=options)
    optimizer = build_optimizer(model, config)
    for gradient in gradients:
        model.layers.weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(model.layers.weight.detach(), reference(before, gradients))


def test_a_skipped_step_changes_nothing():
    model = Decoder(tiny())
    optimizer = build_optimizer(model, OptimConfig("normuon", RATE))
    for skipped in (0.0, 1.0):
        model(torch.arange(8).view(1, 8)).square().mean().backward()
        states = [
            optimizer.state[p] for p in model.parameters() if "row_squares" in optimizer.state[p]
        ]
        before = [state["row_squares"].clone() for state in states]
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.found_inf = torch.tensor(skipped)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
    assert len(before) == 7 * len(model.layers)
    assert all(torch.equal(a, s["row_squares"]) for a, s in zip(before, states, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_layouts_and_a_resume_in_another_layout_train_the_same_curve(warm, corpus, tmp_path):
    def run(name, stop_after, processes, **layout):
        settings = {f"parallel__{key}": size for key, size in layout.items()}
        training = arguments(
            corpus.folder,
            tmp_path / name,
            stop_after=stop_after,
            optim="normuon",
            optim__warmup_tokens=4096,
            optim__learning_rate=0.01,
            optim__min_learning_rate=0.0002,
            validation__every_steps=0,
            checkpoint__every_steps=6,
            **settings,
        )
        ended = warm.run(training, processes, tmp_path / f"{name}-said")
        assert set(ended.codes) == {0}, ended.said

    run("one", 12, 1, dp_shard=1)
    run("split", 6, 2, dp_shard=2)
    run("split", 12, 2, tp=2)
    ours, theirs = (records(tmp_path / name) for name in ("split", "one"))
    assert [record["step"] for record in ours] == list(range(1, 13))
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=1e-4)


@pytest.mark.parametrize("layout", [{}, {"tp": 2}, {"dp_replicate": 2, "cp": 2}])
def test_the_plan_of_memory_is_exact(layout):
    config, optim = tiny(vocab_size=256), OptimConfig("normuon", RATE)
    parallel = ParallelConfig(**layout)
    with fake_ranks(8):
        counted = state_bytes(config, parallel, "bf16", optim)
    sizes = Sizes(*check_layout(parallel, config, 8))
    shapes = parameter_shapes(config)
    planned = plan_memory(config, shapes, sizes, Work("bf16", 512, 128), optim.name)
    # torch also counts the steps of each parameter, in 4 bytes.
    assert counted.optimizer - planned.optimizer == 4 * len(shapes)
