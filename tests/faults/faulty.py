"""`python -m tests.faults.faulty FAULT RANK STEP key=value ...`: a training run in which one rank
meets a fault right before a step (counted from 1) or steps, `4-6`; rank `all` for all."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import pretrain.train
from conf.entry import main
from pretrain.__main__ import COMMANDS
from pretrain.hooks import Hook
from pretrain.trainer import Trainer


def send(number: int) -> Callable[[Trainer], None]:
    return lambda trainer: os.kill(os.getpid(), number)


def send_twice(trainer: Trainer) -> None:
    """The second time later than one Ctrl-C could be, without a step between."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)


def poison(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Trainer], None]:
    """Changes the loss (and the losses by sample) of this rank's passes."""

    def fault(trainer: Trainer) -> None:
        forward = type(trainer.model).forward
        trainer.model.forward = lambda *args, **more: change(  # type: ignore[method-assign]
            *forward(trainer.model, *args, **more)
        )

    return fault


def inf_gradient(loss: Tensor, by_sample: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss * 1
    loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss, by_sample


def slow_optimizer(trainer: Trainer) -> None:
    """From here on by 0.1 s a step."""
    trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(0.1))


def local_weight(trainer: Trainer) -> Tensor:
    """This rank's part of the last norm's weight, as integers."""
    weight = list(trainer.model.named_parameters())
    found = next(parameter for name, parameter in weight if name.startswith("norm."))
    return (found.to_local() if isinstance(found, DTensor) else found).detach().view(torch.int32)


def flip(trainer: Trainer) -> None:
    local_weight(trainer)[3] ^= 1


def drift(trainer: Trainer) -> None:
    """From here on an update goes wrong by a bit."""

    def wrong(*_: object) -> None:
        local_weight(trainer)[3] ^= 1

    trainer.optimizer.register_step_post_hook(wrong)


FAULTS: dict[str, Callable[[Trainer], None]] = {
    "SIGTERM": send(signal.SIGTERM),
    "SIGUSR1": send(signal.SIGUSR1),
    "SIGINT": send(signal.SIGINT),
    "SIGSTOP": send(signal.SIGSTOP),
    "SIGTERM_twice": send_twice,
    "stop_file": lambda trainer: Path(trainer.config.run_dir, "STOP").touch(),
    "nan_loss": poison(lambda loss, by_sample: (loss * torch.nan, by_sample * torch.nan)),
    "inf_gradient": poison(inf_gradient),
    "spike": poison(lambda loss, by_sample: (loss * 100, by_sample * 100)),
    "sleep": lambda trainer: time.sleep(1000),
    "slow_optimizer": slow_optimizer,
    "flip": flip,
    "drift": drift,
    "none": lambda trainer: None,
    "error": lambda trainer: exec('raise RuntimeError("on purpose")'),
}


class Fault(Hook):
    def __init__(self, fault: str, rank: str, step: str) -> None:
        first, _, last = step.partition("-")
        self.fault, self.rank = fault, rank
        self.steps = range(int(first), int(last or first) + 1)

    def before_step(self, trainer: Trainer) -> None:
        here = self.rank in ("all", str(trainer.processes.rank))
        if here and trainer.step + 1 in self.steps:
            FAULTS[self.fault](trainer)

    def after_step(self, trainer: Trainer) -> None:
        vars(trainer.model).pop("forward", None)


if __name__ == "__main__":
    fault, rank, step = sys.argv[1:4]
    del sys.argv[1:4]
    make_hooks = pretrain.train.make_hooks
    pretrain.train.make_hooks = lambda *arguments: [
        *make_hooks(*arguments),
        Fault(fault, rank, step),
    ]
    main("pretrain", COMMANDS, default="train")
