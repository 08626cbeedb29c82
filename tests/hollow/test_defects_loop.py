"""Defects of the training loop that only a GPU has: waits for a queued step, and wrong times."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoints.staging import Copier, Slot, Staged
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.planning.memory import Sizes, Work, parameter_shapes, plan_memory
from tests.hollow.driver import recording


@pytest.mark.parametrize(
    "changes",
    [{"health__compare_every_steps": 2}, {"ranks": 4, "parallel__dp_replicate": 2}],
    ids=["one process", "hsdp"],
)
def test_the_loop_waits_for_no_step_that_it_has_just_queued(changes, rehearse):
    """All hooks take part. The replicas of one process are compared, and no validation is due."""
    run = rehearse(steps=9, **changes)
    assert run.syncs == []
    assert run.loop.pageable == []
    step = run.step.kernels.total()
    assert run.loop.stalls(queued=step) == []  # a whole step is left to run
    assert len([wait for wait in run.loop.waits if wait.thread == "main"]) >= 6  # one per record
    assert len(run.records()) == 9


def test_a_step_takes_the_time_between_its_first_and_last_kernel(rehearse):
    """A launch takes a millisecond here. Validations and the next stage take none of it."""
    run = rehearse(steps=12, validation__every_steps=4, health__rewind_after=0)
    kernels = [
        run.whole.between(f"step {step}", f"end of step {step}").kernels.total()
        for step in range(12)
    ]
    seconds = [record["step_seconds"] for record in run.records()]
    assert seconds == pytest.approx([count / 1e3 for count in kernels])
    for record in run.records():
        assert record["tokens_per_second"] == pytest.approx(4096 / record["step_seconds"])


@pytest.mark.parametrize("sharded", [False, True], ids=["reduced once", "reduced each time"])
def test_accumulated_gradients_take_the_planned_memory(sharded, rehearse):
    """Two micro-batches on each of four ranks, without memory outside of torch's allocator."""
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_layers": 12, "vocab_size": 32000}
    shape |= {"num_heads": 12, "num_kv_heads": 4, "head_dim": 64, "max_seq_len": 1024}
    run = rehearse(
        ranks=4,
        validation__every_steps=0,
        recipe__global_batch_tokens=16384,
        recipe__stages__short__seq_len=1024,
        recipe__stages__short__tokens=16384 * 4,
        recipe__stages__long__seq_len=1024,
        recipe__stages__long__tokens=16384 * 4,
        parallel__micro_batch_tokens=2048,
        parallel__sharded_accumulation=sharded,
        **{f"model__{key}": value for key, value in shape.items()},
    )
    assert run.step.collectives["reduce_scatter"] == (1 + sharded) * 14
    model = run.config.model
    work = Work("bf16", 2048, 1024, sharded_accumulation=sharded)
    planned = plan_memory(model, parameter_shapes(model), Sizes(1, 4), work)
    assert planned.total - planned.buffers == pytest.approx(run.peak_bytes, rel=0.1)


def test_a_checkpoint_is_copied_next_to_the_computation(rehearse):
    """On a stream of its own, from the first save on, into memory that is pinned before it."""
    run = rehearse(steps=9, checkpoints=True, checkpoint__every_steps=4)
    assert run.syncs == []
    assert run.loop.pageable == []
    saved = [fields for fields in run.loop.of("copy") if fields[0].startswith("d2h")]
    large = [fields for fields in saved if int(fields[1]) > 4096]
    assert len(large) > 3 * 3 * 15  # weights and both moments, in three saves
    assert {fields[0] for fields in large} == {"d2h"}
    assert {fields[3] for fields in large} == {"side"}
    assert run.loop.allocations["pinned"] < 1 << 20
    assert run.whole.allocations["pinned"] >= sum(int(fields[1]) for fields in large) // 3


def test_only_the_update_waits_for_the_copy_of_a_checkpoint():
    weights = torch.ones(1 << 16, device="cuda")
    staged = Staged(SimpleNamespace(), [Slot(0, weights.dtype, weights.shape)], weights.nbytes)  # type: ignore[arg-type]
    writer = WriterProcess()
    try:
        memory = writer.memory(weights.nbytes, pinned=True)
        copier = Copier(weights.device)
        with recording() as recorded:
            copied = copier.copy(staged, [weights], memory)
            recorded.mark("backward")
            weights + 1
            recorded.mark("update")
            copier.delay_update()
            weights.mul_(2)
            copier.delay_update()
    finally:
        writer.close()
    assert copied is not None
    calls = [line.split(" ")[0] for line in recorded.trace.lines]
    assert calls == ["order", "copy", "mark", "kernel", "mark", "order", "kernel"]
    assert [fields[0] for fields in recorded.trace.of("order")] == ["side", "default"]
    assert [fields[3] for fields in recorded.trace.of("copy")] == ["side"]


def test_memory_of_checkpoints_that_grows_releases_its_page_lock():
    writer = WriterProcess()
    try:
        small = torch.frombuffer(writer.memory(8192, pinned=True), dtype=torch.uint8)
        assert small.is_pinned()
        large = torch.frombuffer(writer.memory(1 << 20, pinned=True), dtype=torch.uint8)
        assert large.is_pinned()
        assert not small.is_pinned()
    finally:
        writer.close()
    assert not large.is_pinned()
