"""Guarantees for a hook: its order, its state in checkpoints, and the call before an update."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoints import files
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.health.bad_steps import LEAST_STEPS, BadSteps
from pretrain.health.config import HealthConfig
from pretrain.hooks import Hook, Order, in_order
from pretrain.hooks.checkpoints import Checkpoints
from pretrain.processes import start
from pretrain.setup import prepare
from pretrain.trainer import Trainer
from tests.runs import settings


class First(Hook):
    order = Order.TIME


class Counter(Hook):
    """Counts steps, and checks the gradients and weights of each."""

    order = Order.SETTINGS

    def __init__(self) -> None:
        self.steps = 0
        self.norms: list[float] = []
        self.restored: list[dict[str, Any]] = []

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.restored.append(dict(state))
        self.steps = state["steps"]

    def before_step(self, trainer):
        self.before = [p.detach().clone() for p in trainer.model.parameters()]

    def before_optimizer_step(self, trainer):
        parameters = list(trainer.model.parameters())
        grads = [p.grad.norm() for p in parameters if p.grad is not None]
        self.norms.append(float(torch.stack(grads).norm()))
        assert all(map(torch.equal, self.before, parameters))
        self.steps += 1


def test_hooks_are_called_in_their_stated_order():
    last, first, middle, twin = Hook(), First(), Counter(), Counter()
    assert in_order([last, middle, first, twin]) == [first, middle, twin, last]


def test_state_is_in_the_checkpoint_and_restored_by_a_resumed_run(corpus, tmp_path):
    changes = {"validation__every_steps": 0, "checkpoint__keep_last": 9}
    config = settings(corpus.folder, tmp_path / "run", **changes)
    writer = WriterProcess()
    processes = start("cpu")
    try:
        counters = []
        for stop in (4, 6):
            config.stop_after = stop
            run = prepare(config, processes)
            trainer = Trainer(config, processes, run, BadSteps(config.health, 1))
            counters.append(Counter())
            trainer.hooks = [counters[-1], Checkpoints(config.checkpoint, writer)]
            trainer.train()
            trainer.hooks[-1].on_leave(trainer)
    finally:
        writer.close()
        dist.destroy_process_group()
    manifest = files.read_manifest(tmp_path / "run" / "checkpoints" / "step_4")
    assert manifest["hooks"] == {"Counter": {"steps": 4}}
    assert [counter.restored for counter in counters] == [[], [{"steps": 4}]]
    assert [counter.steps for counter in counters] == [4, 6]
    # Gradients are final: clipped to the norm 1.
    assert max(counters[0].norms) <= 1.0 + 1e-5


def test_bad_steps_continue_where_a_checkpoint_was_saved():
    def record(step, **more):
        return {"kind": "train", "step": step, "stage": "a", "loss": 2.0, "grad_norm": 1.0, **more}

    saved = BadSteps(HealthConfig(), 1)
    for step in range(1, LEAST_STEPS + 3):
        saved.on_record(record(step))
    saved.on_record(record(LEAST_STEPS + 3, loss=float("nan"), bad="not finite"))
    saved.on_record({"kind": "event", "event": "rewind", "step": 5})
    state = json.loads(json.dumps(saved.state_dict(), allow_nan=False))
    resumed = BadSteps(HealthConfig(), 1)
    resumed.load_state_dict(state)
    assert (resumed.seen, resumed.rewinds) == (saved.seen, saved.rewinds)
    assert resumed.limits("a", 30) == saved.limits("a", 30) != ()
    # On a rewind to that checkpoint, what was seen since then is kept.
    resumed.on_record(record(40))
    resumed.on_record({"kind": "event", "event": "rewind", "step": 41})
    resumed.load_state_dict(state)
    assert 40 in resumed.seen
    assert resumed.rewinds == [5, 41]
