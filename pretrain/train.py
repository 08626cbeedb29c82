"""`python -m pretrain`, alone or under `torchrun`."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from conf.errors import EXIT_FAILED, EXIT_REQUEUE, InputError, RunAborted
from conf.terminal import print_error, tolerate_broken_output
from data_pipeline.store.corpus import open_corpus
from pretrain.attention_choice import Timing
from pretrain.checkpoints.writer_process import Aside
from pretrain.config import PretrainConfig
from pretrain.health.bad_steps import BadSteps
from pretrain.health.flight_recorder import turn_on_flight_recorder
from pretrain.health.outcome import FINISHED, STOPPED, writing_outcome
from pretrain.health.receipts import Receipts
from pretrain.health.replay import Replay
from pretrain.health.restarts import count_start, ended_well
from pretrain.health.run_lock import locked
from pretrain.health.stop import StopRequests, check_stop_file
from pretrain.health.stragglers import Stragglers
from pretrain.health.watchdog import Watchdog
from pretrain.hooks import Hook
from pretrain.hooks.allocator import Allocator
from pretrain.hooks.attention import AttentionByStage
from pretrain.hooks.checkpoints import Checkpoints
from pretrain.hooks.energy import Energy
from pretrain.hooks.garbage import Garbage
from pretrain.hooks.network import NetworkByStage
from pretrain.hooks.precision import PrecisionByStage
from pretrain.hooks.profile import Profile
from pretrain.hooks.progress import ProgressLine
from pretrain.hooks.recompiles import Recompiles
from pretrain.hooks.report import write_page
from pretrain.hooks.run_files import RunFiles
from pretrain.hooks.tasks import Tasks
from pretrain.hooks.validation import Validation
from pretrain.hooks.wandb_logger import WandbLogger
from pretrain.processes import Processes, start
from pretrain.setup import prepare
from pretrain.trainer import Trainer


def train(config: PretrainConfig) -> None:
    """Trains from the newest checkpoint of the run folder, or from step 0, to the plan's end."""
    faulthandler.enable()  # a process that the machine ends (SIGBUS, SIGSEGV) says where
    turn_on_flight_recorder(config.run_dir)
    aside = Aside()  # before there is anything that a fork would copy
    run_dir = Path(config.run_dir)
    with tolerate_broken_output(), leaving(aside):
        processes = start(config.device)
        check_stop_file(run_dir)
        with (
            locked(run_dir, processes),
            ExitStack() as at_the_end,
            writing_outcome(run_dir, processes) as outcome,
        ):
            outcome.cause = run_all(config, processes, aside, at_the_end)


@contextmanager
def leaving(aside: Aside) -> Iterator[None]:
    """Leaves the process group at the end. Where all ranks end together, none goes before rank 0
    has closed its files: torchrun ends the others when it sees one gone.

    A rank that may fail alone ends its process at once: in an orderly end, torch waits for
    collectives in which the others take no part any more, and the cause would never be seen.
    """
    try:
        yield
    except RunAborted:
        if dist.is_initialized():
            dist.barrier()
        raise
    except Exception as error:
        alone = error.every_rank if isinstance(error, InputError) else True
        if alone and dist.is_initialized() and dist.get_world_size() > 1:
            end_at_once(error)
        raise
    finally:
        aside.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def end_at_once(error: Exception) -> NoReturn:
    """Says what ended this rank, as Python or the command line would, and ends the process."""
    code = EXIT_FAILED
    if isinstance(error, InputError):
        code = error.exit_code
        print_error(f"error: {error}")
    else:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def run_all(
    config: PretrainConfig, processes: Processes, aside: Aside, at_the_end: ExitStack
) -> str:
    """Prepares the run and trains; returns whether it is finished or was stopped by `stop_after`.
    Raises RunAborted where it was asked to stop.

    at_the_end: takes what remains to be done once the outcome is written, after an error too.
    """
    tasks = [Tasks(config.evaluation)] if config.evaluation.tasks else []
    for of_tasks in tasks:
        of_tasks.check(open_corpus(config.data.folder), config.model.max_seq_len)
    run = prepare(config, processes)
    if run.step == run.plan.total_steps:
        if processes.is_main:
            print(f"{config.run_dir} is finished: all {run.step} steps are done.")
        return FINISHED
    count_start(Path(config.run_dir), run.step, config.health.restarts_at_most, processes)
    trainer = Trainer(config, processes, run, BadSteps(config.health, processes.world_size))
    trainer.hooks = make_hooks(trainer, run.attention, tasks, aside)
    for hook in reversed(trainer.hooks):
        at_the_end.callback(hook.on_leave, trainer)
    trainer.train()
    if processes.is_main:
        ended_well(Path(config.run_dir))
        if config.report and trainer.step == run.plan.total_steps:
            write_page(Path(config.run_dir))
    if trainer.stopping and trainer.step < run.plan.total_steps:
        raise RunAborted(
            f"stopped after step {trainer.step} ({trainer.stopping}), the same command goes on.",
            EXIT_REQUEUE,
        )
    if trainer.step == run.plan.total_steps:
        return FINISHED
    if processes.is_main:
        print(
            f"stopped after step {trainer.step} of {run.plan.total_steps} (stop_after="
            f"{config.stop_after}): the same command without stop_after continues."
        )
    return STOPPED


def make_hooks(
    trainer: Trainer,
    attention: dict[int, Timing],
    tasks: list[Tasks],
    aside: Aside,
) -> list[Hook]:
    """The hooks of this rank, in the order in which they are called: records are written before
    the checkpoint that covers them."""
    config, processes = trainer.config, trainer.processes
    run_dir = Path(config.run_dir)
    hooks: list[Hook] = [Watchdog(run_dir, config.health, processes)]
    hooks += [Profile(run_dir, config.profile, processes.rank), Recompiles()]
    if processes.is_main:
        hooks.append(RunFiles(run_dir))
        if config.logger.wandb != "disabled":
            hooks.append(WandbLogger(run_dir, config.logger))
        if config.logger.progress:
            hooks.append(ProgressLine())
    hooks += [trainer.bad_steps, StopRequests(run_dir, config.health, processes)]
    hooks += [NetworkByStage(), AttentionByStage(attention), PrecisionByStage(config)]
    hooks += [Stragglers(config.health, processes), Replay(config.health.replay_steps)]
    hooks.append(Receipts(run_dir, config.health.compare_every_steps, processes))
    hooks += [Validation(config.validation), *tasks, Checkpoints(config.checkpoint, aside)]
    hooks += [Energy(processes), Garbage(config.gc_every_steps), Allocator()]
    return hooks
