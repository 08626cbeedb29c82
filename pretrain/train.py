"""Starts, runs and ends a training process of `python -m pretrain`, alone or under `torchrun`."""

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
from pretrain.checkpoints.writer_process import WriterProcess
from pretrain.checks import check_run_folder
from pretrain.config import PretrainConfig
from pretrain.health.bad_steps import BadSteps
from pretrain.health.flight_recorder import turn_on_flight_recorder
from pretrain.health.outcome import FINISHED, STOPPED, writing_outcome
from pretrain.health.receipts import Receipts
from pretrain.health.replay import Replay
from pretrain.health.restarts import count_start, reset_starts
from pretrain.health.run_lock import locked
from pretrain.health.stop import StopRequests, check_stop_file
from pretrain.health.stragglers import Stragglers
from pretrain.health.watchdog import Watchdog
from pretrain.hooks import Hook, in_order
from pretrain.hooks.allocator import Allocator
from pretrain.hooks.attention import AttentionByStage
from pretrain.hooks.checkpoints import Checkpoints
from pretrain.hooks.ema import Ema
from pretrain.hooks.energy import Energy
from pretrain.hooks.garbage import Garbage
from pretrain.hooks.loggers import build_loggers
from pretrain.hooks.network import NetworkByStage
from pretrain.hooks.precision import PrecisionByStage
from pretrain.hooks.profile import Profile
from pretrain.hooks.progress import ProgressLine
from pretrain.hooks.recompiles import Recompiles
from pretrain.hooks.report import write_page
from pretrain.hooks.run_files import RunFiles
from pretrain.hooks.tasks import Tasks
from pretrain.hooks.validation import Validation
from pretrain.processes import Processes, barrier, start
from pretrain.run import Run
from pretrain.setup import prepare
from pretrain.trainer import Trainer


def train(config: PretrainConfig) -> None:
    """Trains from the newest checkpoint of the run folder, or from step 0, to the plan's end."""
    faulthandler.enable()  # prints the stack of a process that dies with SIGBUS or SIGSEGV
    turn_on_flight_recorder(config.run_dir)
    writer = WriterProcess()  # forked before there is any memory that a fork would copy
    run_dir = Path(config.run_dir)
    with tolerate_broken_output(), shutdown_on_exit(writer):
        processes = start(config.device)
        check_run_folder(run_dir)
        check_stop_file(run_dir)
        with (
            locked(run_dir, processes),
            ExitStack() as on_exit,
            writing_outcome(run_dir, processes) as outcome,
        ):
            outcome.cause = run_training(config, processes, writer, on_exit)


@contextmanager
def shutdown_on_exit(writer: WriterProcess) -> Iterator[None]:
    """Leaves the process group and ends the writer when the process ends.

    When all ranks end together, they wait until rank 0 has closed its files, because torchrun ends
    the other ranks as soon as one exits. A rank that fails alone ends its process at once: an
    orderly shutdown would wait for collectives that the other ranks never join, and the error would
    never be shown.
    """
    try:
        yield
    except RunAborted:
        if dist.is_initialized():
            barrier()
        raise
    except Exception as error:
        fails_alone = error.every_rank if isinstance(error, InputError) else True
        if fails_alone and dist.is_initialized() and dist.get_world_size() > 1:
            exit_at_once(error)
        raise
    finally:
        writer.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def exit_at_once(error: Exception) -> NoReturn:
    """Prints the error as usual (input errors without a traceback), and ends the process."""
    code = EXIT_FAILED
    if isinstance(error, InputError):
        code = error.exit_code
        print_error(f"error: {error}")
    else:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def run_training(
    config: PretrainConfig, processes: Processes, writer: WriterProcess, on_exit: ExitStack
) -> str:
    """Prepares the run and trains. Returns FINISHED, or STOPPED if `stop_after` ended it.

    Raises RunAborted after a stop request, such as a signal or a time limit.

    Args:
        config: The run.
        processes: The processes of the run.
        writer: The process that writes checkpoints.
        on_exit: Stack of callbacks to run after the outcome is written, even after an error.
    """
    tasks = [Tasks(config.evaluation)] if config.evaluation.tasks else []
    for one in tasks:
        one.check(open_corpus(config.data.folder), config.model.max_seq_len)
    run = prepare(config, processes)
    if run.step == run.plan.total_steps:
        if processes.is_main:
            print(f"{config.run_dir} is finished: all {run.step} steps are done.")
        return FINISHED
    count_start(Path(config.run_dir), run.step, config.health.restarts_at_most, processes)
    trainer = Trainer(config, processes, run, BadSteps(config.health, processes.world_size))
    trainer.hooks = make_hooks(trainer, run, tasks, writer)
    for hook in reversed(trainer.hooks):
        on_exit.callback(hook.on_leave, trainer)
    trainer.train()
    if processes.is_main:
        reset_starts(Path(config.run_dir))
        if config.report and trainer.step == run.plan.total_steps:
            write_page(Path(config.run_dir))
    if trainer.step == run.plan.total_steps:
        return FINISHED
    if trainer.stopping:
        raise RunAborted(
            f"stopped after step {trainer.step} ({trainer.stopping}). The same command resumes the "
            "run.",
            EXIT_REQUEUE,
        )
    if processes.is_main:
        print(
            f"stopped after step {trainer.step} of {run.plan.total_steps} "
            f"(stop_after={config.stop_after}). The same command without stop_after resumes the "
            "run."
        )
    return STOPPED


def make_hooks(trainer: Trainer, run: Run, tasks: list[Tasks], writer: WriterProcess) -> list[Hook]:
    """Returns the hooks of this rank, in the order in which they are called."""
    config, processes = trainer.config, trainer.processes
    run_dir, health = Path(config.run_dir), config.health
    ema = None
    if config.ema.decay is not None:
        ema = Ema(config.ema, trainer.model, processes.device)
    hooks: list[Hook] = [
        Watchdog(run_dir, health, processes),
        Profile(run_dir, config.profile, processes.rank),
        Recompiles(),
        trainer.bad_steps,
        StopRequests(run_dir, health, processes),
        NetworkByStage(),
        AttentionByStage(run.attention),
        PrecisionByStage(config),
        Stragglers(health, processes),
        Replay(health.replay_steps),
        Receipts(run_dir, health.compare_every_steps, processes),
        *([ema] if ema else []),
        Validation(config.validation, ema),
        *tasks,
        Checkpoints(config.checkpoint, writer),
        Energy(processes),
        Garbage(config.gc_every_steps),
        Allocator(),
    ]
    if processes.is_main:
        hooks += [RunFiles(run_dir), *build_loggers(run_dir, config.logger)]
        if config.logger.progress:
            hooks.append(ProgressLine())
    return in_order(hooks)
