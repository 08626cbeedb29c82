"""A training run with a fault on one rank, right before a step.

`python -m tests.faults.faulty FAULT RANK STEP key=value ...`. Steps are counted from 1, several are
`4-6`; rank `all` means all ranks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import pretrain.train
from conf.entry import main
from data_pipeline.store.shards import DamagedShard
from pretrain.__main__ import COMMANDS
from pretrain.checkpoints import files
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.hooks import Hook, TrainerView
from tests.patience import limit


def send(number: int) -> Callable[[TrainerView], None]:
    return lambda trainer: os.kill(os.getpid(), number)


def send_twice(trainer: TrainerView) -> None:
    """The second time later than one Ctrl-C could be, without a step between."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)


def poison(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[[TrainerView], None]:
    """Changes the loss (and the losses by sample) of this rank's passes."""

    def fault(trainer: TrainerView) -> None:
        forward = type(trainer.model).forward
        trainer.model.forward = lambda *args, **more: change(  # type: ignore[method-assign]
            *forward(trainer.model, *args, **more)
        )

    return fault


def inf_gradient(loss: Tensor, by_sample: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss * 1
    loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss, by_sample


def slow_optimizer(trainer: TrainerView) -> None:
    """From here on by several times what a step takes."""
    seconds = limit(0.1)
    trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(seconds))


def stop_file(trainer: TrainerView) -> None:
    """And from here on steps that are long enough for it to be looked for before the last one."""
    Path(trainer.config.run_dir, "STOP").touch()
    trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(0.6))


def kill_in_backward(trainer: TrainerView) -> None:
    """Kills the process when the gradient reaches the first block."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    next(iter(trainer.model.layers)).register_full_backward_hook(kill)


def kill_before_reduce(trainer: TrainerView) -> None:
    """Right before this rank's next message, for which the others wait."""

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for name in ("reduce_scatter_single", "reduce_scatter_tensor", "all_reduce"):
        setattr(dist, name, kill)


def kill_soon(trainer: TrainerView) -> None:
    """At some moment of the steps that come."""
    seconds = float(os.environ["HEADWATER_FAULT_SECONDS"])
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def no_memory(trainer: TrainerView) -> None:
    """From here on this rank gets no more."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)
    forward = type(trainer.model).forward

    def greedy(*arguments: Any, **more: Any) -> Any:
        torch.zeros(1 << 28)
        return forward(trainer.model, *arguments, **more)

    trainer.model.forward = greedy  # type: ignore[method-assign]


def clock(seconds: float) -> Callable[[TrainerView], None]:
    """From here on the wall clock is so much off."""

    def fault(trainer: TrainerView) -> None:
        real = time.time
        time.time = lambda: real() + seconds

    return fault


LINES = ("metrics.jsonl", "ledger.jsonl", "receipts.jsonl")


def no_room_for_lines(trainer: TrainerView) -> None:
    """For three steps."""
    for name in LINES:
        path = Path(trainer.config.run_dir, name)
        path.rename(path.with_suffix(".kept"))
        path.symlink_to("/dev/full")

    def room(hook: Hook, trainer: TrainerView, until: int = trainer.step + 3) -> None:
        if trainer.step != until:
            return
        for name in LINES:
            path = Path(trainer.config.run_dir, name)
            path.with_suffix(".kept").replace(path)

    trainer.hooks.append(type("Room", (Hook,), {"before_step": room})())


def shards(change: Callable[[Path], None]) -> Callable[[TrainerView], None]:
    """Changes all shards of the corpus, and has all of them read again."""

    def fault(trainer: TrainerView) -> None:
        for path in Path(trainer.config.data.folder, "train").glob("*.bin"):
            change(path)

    return fault


def drift_once(trainer: TrainerView) -> None:
    """The next update goes wrong by a bit."""

    def wrong(*_: object) -> None:
        local_weight(trainer)[3] ^= 1
        handle.remove()

    handle = trainer.optimizer.register_step_post_hook(wrong)


def local_weight(trainer: TrainerView) -> Tensor:
    """Returns this rank's shard of the last norm's weight, as integers.

    It is not the gathered copy that FSDP still has after a validation and drops in the next step.
    """
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    weight = list(trainer.model.named_parameters())
    found = next(parameter for name, parameter in weight if name.startswith("norm."))
    return (found.to_local() if isinstance(found, DTensor) else found).detach().view(torch.int32)


def flip(trainer: TrainerView) -> None:
    """Flips a bit other than the last, which rounding may restore before the comparison."""
    local_weight(trainer)[3] ^= 1 << 12


def drift(trainer: TrainerView) -> None:
    """From here on an update goes wrong by a bit."""

    def wrong(*_: object) -> None:
        local_weight(trainer)[3] ^= 1

    trainer.optimizer.register_step_post_hook(wrong)


LATE = threading.Event()
"""Set when a stopped writer of checkpoints has been stopped for long enough."""


def is_stopped(pid: int) -> bool:
    """A process that died in the meantime is not; its end of the connection closes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def only_a_writer_that_hangs_is_late() -> None:
    """Replaces the time limit, which slow writers exceed on a busy machine, by the event."""
    pids: dict[object, int] = {}

    def answer(connection: Connection, ends: float) -> Any:
        pid = pids.get(connection)
        while not connection.poll(0.05):
            if pid and LATE.is_set() and is_stopped(pid):
                raise TimeoutError
        found = connection.recv()
        pids.setdefault(connection, found)  # the first thing that a writer says
        return found

    WriterProcess._answer = staticmethod(answer)  # type: ignore[assignment,method-assign]


def no_latest(path: Path, content: Any) -> None:
    """In place of `files.write_durably`: of a file system that hangs in the last part of a save."""
    if path.name == files.LATEST:
        os.kill(os.getpid(), signal.SIGSTOP)
    write_durably(path, content)


write_durably = files.write_durably


def damaged_shard(trainer: TrainerView) -> None:
    """Raises the error that reading a damaged shard raises."""
    raise DamagedShard("code.bin is missing: tokenize the corpus again.")


FAULTS: dict[str, Callable[[TrainerView], None]] = {
    "SIGTERM": send(signal.SIGTERM),
    "SIGUSR1": send(signal.SIGUSR1),
    "SIGINT": send(signal.SIGINT),
    "SIGHUP": send(signal.SIGHUP),
    "SIGSTOP": send(signal.SIGSTOP),
    "SIGKILL": send(signal.SIGKILL),
    "kill_in_backward": kill_in_backward,
    "kill_before_reduce": kill_before_reduce,
    "kill_soon": kill_soon,
    "no_memory": no_memory,
    "clock_ahead": clock(86400),
    "clock_back": clock(-86400),
    "no_room_for_lines": no_room_for_lines,
    "shards_go": shards(Path.unlink),
    "shards_shrink": shards(lambda path: os.truncate(path, 100)),
    "drift_once": drift_once,
    "SIGTERM_twice": send_twice,
    "stop_file": stop_file,
    "nan_loss": poison(lambda loss, by_sample: (loss * torch.nan, by_sample * torch.nan)),
    "inf_gradient": poison(inf_gradient),
    "spike": poison(lambda loss, by_sample: (loss * 100, by_sample * 100)),
    "sleep": lambda trainer: time.sleep(1000),
    "slow_optimizer": slow_optimizer,
    "flip": flip,
    "drift": drift,
    "none": lambda trainer: None,
    "blind": lambda trainer: None,
    "late": lambda trainer: LATE.set(),
    "no_latest": lambda trainer: LATE.set(),
    "damaged_shard": damaged_shard,
    "error": lambda trainer: exec('raise RuntimeError("on purpose")'),
}


class Fault(Hook):
    def __init__(self, fault: str, rank: str, step: str) -> None:
        first, _, last = step.partition("-")
        self.fault, self.rank = fault, rank
        self.steps = range(int(first), int(last or first) + 1)

    def before_step(self, trainer: TrainerView) -> None:
        here = self.rank in ("all", str(trainer.processes.rank))
        if here and trainer.step + 1 in self.steps:
            FAULTS[self.fault](trainer)

    def after_step(self, trainer: TrainerView) -> None:
        vars(trainer.model).pop("forward", None)


if __name__ == "__main__":
    fault, rank, step = sys.argv[1:4]
    del sys.argv[1:4]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    if fault == "blind" and os.environ.get("RANK") == rank:
        files.checkpoints_in = lambda folder: []  # as a file system that shows new names late
    if fault in ("late", "no_latest"):
        only_a_writer_that_hangs_is_late()
    if fault == "no_latest":
        files.write_durably = no_latest
    make_hooks = pretrain.train.make_hooks
    pretrain.train.make_hooks = lambda *arguments: [
        *make_hooks(*arguments),
        Fault(fault, rank, step),
    ]
    main("pretrain", COMMANDS, default="train")
