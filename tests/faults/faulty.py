"""`python -m tests.faults.faulty FAULT RANK STEP key=value ...`: a training run in which one rank
meets a fault right before a step (counted from 1); rank `all` for all."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


FAULTS: dict[str, Callable[[Trainer], None]] = {
    "SIGTERM": send(signal.SIGTERM),
    "SIGUSR1": send(signal.SIGUSR1),
    "SIGINT": send(signal.SIGINT),
    "SIGSTOP": send(signal.SIGSTOP),
    "SIGTERM_twice": send_twice,
    "stop_file": lambda trainer: Path(trainer.config.run_dir, "STOP").touch(),
    "error": lambda trainer: exec('raise RuntimeError("on purpose")'),
}


class Fault(Hook):
    def __init__(self, fault: str, rank: str, step: str) -> None:
        self.fault, self.rank, self.step = fault, rank, int(step)

    def before_step(self, trainer: Trainer) -> None:
        here = self.rank in ("all", str(trainer.processes.rank))
        if here and trainer.step + 1 == self.step:
            FAULTS[self.fault](trainer)


if __name__ == "__main__":
    fault, rank, step = sys.argv[1:4]
    del sys.argv[1:4]
    make_hooks = pretrain.train.make_hooks
    pretrain.train.make_hooks = lambda *arguments: [
        *make_hooks(*arguments),
        Fault(fault, rank, step),
    ]
    main("pretrain", COMMANDS, default="train")
