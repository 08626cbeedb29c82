"""The plan of a teacher against what is really there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from launch.plan.speed import Step, flops_of, step_time
from model.config import ModelConfig
from model.flops import flops_per_token
from pretrain.checks import check_layout
from pretrain.config import ParallelConfig
from pretrain.parallel.frozen import build_frozen
from pretrain.parallel.mesh import make_layout
from pretrain.planning.fake_ranks import fake_ranks, local_bytes
from pretrain.planning.layouts import Machine, RunRequirements, candidates
from pretrain.planning.memory import Sizes, Work, parameter_shapes, plan_memory
from pretrain.planning.teacher import TeacherShape, network_bytes, with_teacher
from tests.launch.test_plan import cluster
from tests.pretrain.planning.test_memory import GEMMA3, LAYOUTS, MODEL, QWEN2

TEACHER: dict[str, Any] = MODEL | {"hidden_size": 256, "intermediate_size": 688, "num_layers": 6}


@pytest.mark.parametrize("features", [{}, {"tie_embeddings": True}, QWEN2, GEMMA3], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_those_of_the_split_network(precision, features):
    network = ModelConfig(**TEACHER | features)
    with fake_ranks(8):
        for name, layout in LAYOUTS.items():
            parallel = ParallelConfig(**layout)
            mesh = check_layout(parallel, network, 8)
            device = torch.device("cpu")
            model = build_frozen(
                *(network, make_layout(mesh, device), parallel, precision, device),
                lambda name, shape: torch.zeros(shape),
            )
            planned, _ = network_bytes(
                TeacherShape(network, 8), Sizes(*mesh), Work(precision, 512, 256)
            )
            assert planned == sum(map(local_bytes, model.parameters())), name
            assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_plan_adds_weights_and_answers():
    model, network = ModelConfig(**MODEL), ModelConfig(**TEACHER)
    shapes, sizes, work = parameter_shapes(model), Sizes(), Work("bf16", 512, 256)
    plain = plan_memory(model, shapes, sizes, work)
    cached = with_teacher(plain, TeacherShape(None, 16), model, sizes, work)
    online = with_teacher(plain, TeacherShape(network, 16), model, sizes, work)
    assert cached.total - plain.total > 512 * (16 * 12 + 4)
    weights = 2 * sum(shape.numel() for shape in parameter_shapes(network).values())
    assert online.teacher - cached.teacher == weights
    # A teacher whose forward pass needs more than all of the student's step decides the peak.
    wide = replace(network, intermediate_size=64 * 688)
    weights, forward = network_bytes(TeacherShape(wide, 16), sizes, work)
    planned = with_teacher(plain, TeacherShape(wide, 16), model, sizes, work)
    assert planned.total == plain.state + plain.buffers + weights + forward


def test_a_large_teacher_needs_more_ranks():
    model, network = ModelConfig(**MODEL), ModelConfig(**TEACHER)
    parallel = ParallelConfig(micro_batch_tokens=256)
    need = RunRequirements(model, "bf16", "adamw", parallel, (256,))
    memory = candidates(need, Machine(1, 1, 1 << 50))[0].memory
    assert memory is not None
    small = 2 * memory.total - memory.buffers
    taught = replace(need, teacher=TeacherShape(replace(network, intermediate_size=100 * 688), 16))
    one = candidates(taught, Machine(1, 1, small))
    assert one[0].problem is not None
    assert "for teacher" in one[0].problem
    odd = replace(network, intermediate_size=687)
    problems = {
        found.name: found.problem
        for found in candidates(
            replace(need, teacher=TeacherShape(odd, 16)), Machine(2, 2, 1 << 50)
        )
    }
    assert problems["FSDP 2"] is None
    assert "model.intermediate_size=687: expected a multiple of parallel.tp=2" in (
        problems["FSDP 1 x TP2"] or ""
    )


def test_a_step_takes_the_forward_pass_of_the_teacher_longer():
    model, network = ModelConfig(**MODEL), ModelConfig(**TEACHER)
    parallel = ParallelConfig(1, 8, micro_batch_tokens=16384)
    plain = Step(model, 256, 2**20, "bf16", parallel)
    taught = replace(plain, teacher=network)
    other = replace(plain, model=network)
    h100 = cluster("h100")
    times = [step_time(step, h100, False) for step in (plain, taught, other)]
    assert times[1].matmul == pytest.approx(times[0].matmul + times[2].matmul / 3)
    assert times[1].optimizer == times[0].optimizer
    assert times[1].total > times[0].total
    assert flops_of(taught) == pytest.approx(
        flops_per_token(model, 256) + flops_per_token(network, 256) / 3
    )
