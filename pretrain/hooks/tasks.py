"""Scores lm-eval tasks on the sharded model while it trains, on all ranks."""

from __future__ import annotations

import time

from torch import Tensor

from data_pipeline.store.manifest import Manifest
from pretrain.checks import check_tasks_package
from pretrain.config import EvaluationConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel import reshard_parameters
from pretrain.stage_network import network_after


class Tasks(Hook):
    """Scores tasks at an interval and after the last step.

    The data-parallel ranks share the requests. Raises InputError if lm-eval or a task is missing,
    or if a task generates text.
    """

    order = Order.EVALUATE

    def __init__(self, config: EvaluationConfig) -> None:
        check_tasks_package(config)
        from eval.inloop.tasks import InloopTasks

        self.config = config
        self.tasks = InloopTasks(config)

    def check(self, manifest: Manifest, max_seq_len: int) -> None:
        """Builds all requests without running a model.

        Raises:
            InputError: A request is too long for a context of max_seq_len tokens.
        """
        self.tasks.check_requests(manifest.tokenizer_path, prefix_id(manifest), max_seq_len)

    def after_step(self, trainer: TrainerView) -> None:
        """Scores the tasks if the step is a multiple of the interval or the last one."""
        every = self.config.every_steps
        if trainer.step == trainer.plan.total_steps or (every and trainer.step % every == 0):
            self._score(trainer)

    def _score(self, trainer: TrainerView) -> None:
        from eval.inloop.tasks import InloopLM, training_record

        started = time.perf_counter()
        parallel = trainer.config.parallel

        # A CPU runs any shape without recompiling, and with sdpa it computes what transformers
        # computes, so that the scores equal those of the export.
        as_lm_eval = trainer.processes.device.type == "cpu" and not parallel.compile
        backend = trainer.model.attention
        if as_lm_eval:
            trainer.model.attention = "sdpa"

        def forward(tokens: Tensor) -> Tensor:
            return trainer.model(tokens)

        model = InloopLM(
            forward,
            trainer.manifest.tokenizer_path,
            prefix_id(trainer.manifest),
            network_after(trainer.config.model, trainer.plan, trainer.step).max_seq_len,
            None if as_lm_eval else parallel.micro_batch_tokens,
            trainer.processes.device,
            parallel.tp if parallel.cp == 1 else 2 * parallel.cp * parallel.tp,
            trainer.layout.dp.get_group(),
        )
        found = self.tasks.score(model, verbose=False)  # the warnings were printed by `check`
        reshard_parameters(trainer.model)
        trainer.model.attention = backend
        scores = {task: training_record(entry) for task, entry in found.items()}
        seconds = time.perf_counter() - started
        trainer.publish({"kind": "eval", "tasks": scores, "seconds": seconds})


def prefix_id(manifest: Manifest) -> int:
    """Returns the token that precedes a text without context: BOS, or EOS if there is no BOS."""
    special = manifest.tokenizer
    found: int = special["eos_id"] if special.get("bos_id") is None else special["bos_id"]
    return found
