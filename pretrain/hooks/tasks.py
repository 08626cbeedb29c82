"""Tasks of lm-eval on the model as it is spread, while it trains; all ranks."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from data_pipeline.store.manifest import Manifest
from pretrain.checks import check_tasks_package
from pretrain.config import EvaluationConfig
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.parallel import drop_gathered

if TYPE_CHECKING:
    from eval.tasks.checked_lm import CheckedDecoderLM


class Tasks(Hook):
    """At an interval and after the last step; requests are dealt over the data-parallel ranks.

    Raises InputError where lm-eval or a task is not here, or a task lets the model write text.
    """

    order = Order.EVALUATE

    def __init__(self, config: EvaluationConfig) -> None:
        check_tasks_package(config)
        from eval.tasks.load import load_tasks, quiet
        from eval.tasks.suites import select

        self.config = config
        self.selection = select(config, "evaluation.")
        with quiet(offline=not self.selection.built_in):
            self.manager = load_tasks(self.selection, "evaluation.", config.limit)
            loaded = self.manager.load([choice.task for choice in self.selection.choices])
        for name, task in loaded["tasks"].items():
            if task.OUTPUT_TYPE == "generate_until":
                raise InputError(
                    f"evaluation.tasks: {name} lets the model write text, which is scored on an "
                    "export only (python -m eval lm_eval): drop it."
                )

    def check(self, manifest: Manifest, max_seq_len: int) -> None:
        """Makes all requests without running a model.

        Raises:
            InputError: a model of max_seq_len tokens could not answer one of them.
        """
        from eval.tasks.checked_lm import CheckedDecoderLM

        def forward(tokens: Tensor) -> Tensor:
            raise RuntimeError("a check runs no model")

        model = CheckedDecoderLM(
            forward,
            manifest.tokenizer_path,
            prefix_id(manifest),
            max_seq_len,
            None,
            torch.device("cpu"),
        )
        model.prefix, model.is_dry = "evaluation.", True
        self._score_tasks(model, tells=True)

    def after_step(self, trainer: TrainerView) -> None:
        """Scores at the interval and at the end."""
        every = self.config.every_steps
        if trainer.step == trainer.plan.total_steps or (every and trainer.step % every == 0):
            self._score(trainer)

    def _score(self, trainer: TrainerView) -> None:
        from eval.tasks.checked_lm import CheckedDecoderLM

        started = time.perf_counter()
        parallel = trainer.config.parallel

        # A CPU takes any shape as it comes, and torch's own attention there is transformers' too.
        as_lm_eval = trainer.processes.device.type == "cpu" and not parallel.compile
        backend = trainer.model.attention
        if as_lm_eval:
            trainer.model.attention = "sdpa"

        def forward(tokens: Tensor) -> Tensor:
            return trainer.model(tokens)

        model = CheckedDecoderLM(
            forward,
            trainer.manifest.tokenizer_path,
            prefix_id(trainer.manifest),
            trainer.config.model.max_seq_len,
            None if as_lm_eval else parallel.micro_batch_tokens,
            trainer.processes.device,
            parallel.tp if parallel.cp == 1 else 2 * parallel.cp * parallel.tp,
            trainer.layout.dp.get_group(),
        )
        model.prefix = "evaluation."
        found = self._score_tasks(model, tells=False)  # told when they were checked
        drop_gathered(trainer.model)
        trainer.model.attention = backend
        scores = {
            task: {name: metric["value"] for name, metric in entry["metrics"].items()}
            | {"samples": entry["samples"]}
            for task, entry in found.items()
        }
        seconds = time.perf_counter() - started
        trainer.publish({"kind": "eval", "tasks": scores, "seconds": seconds})

    def _score_tasks(self, model: CheckedDecoderLM, *, tells: bool) -> dict[str, dict[str, Any]]:
        """Returns the scores; lm-eval seeds the generators of the whole process, which are put
        back."""
        from eval.tasks.load import quiet, score_tasks

        states = random.getstate(), np.random.get_state()
        with quiet(offline=not self.selection.built_in), torch.random.fork_rng():
            found = score_tasks(model, self.selection, self.manager, self.config.limit, tells=tells)
        random.setstate(states[0])
        np.random.set_state(states[1])
        return found


def prefix_id(manifest: Manifest) -> int:
    """Returns the token that stands before a text without a context: BOS, or EOS without one."""
    special = manifest.tokenizer
    found: int = special["eos_id"] if special.get("bos_id") is None else special["bos_id"]
    return found
