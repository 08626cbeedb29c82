"""`python -m launch local nproc=N -- key=value ...`: pretraining on this machine with torchrun."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from conf.errors import InputError
from launch import training

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that are forwarded to torchrun; Ctrl-C in a terminal reaches it directly."""


@dataclass
class LocalConfig:
    """Configuration of `local`, which runs torchrun and exits with the run's own exit code.

    The overrides of `python -m pretrain` follow `--` (its --help shows them). The run folder has
    one log per rank in `logs/`.

    nproc: number of processes; null for one per GPU, or a single one on a machine without GPUs.
    shutdown_seconds: seconds for a stop with its checkpoint, before torchrun kills the ranks.
    dry_run: only prints the command.
    """

    nproc: int | None = None
    shutdown_seconds: int = 300
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.nproc is not None and self.nproc < 1:
            raise InputError(f"nproc={self.nproc}: expected 1 or more, or null for one per GPU.")


def local(config: LocalConfig) -> None:
    """Runs torchrun, and exits with the run's own exit code, which torchrun hides."""
    run = training.compose(training.overrides)
    nproc = config.nproc or gpus()
    check(run.settings(), nproc)
    command = torchrun(nproc, run.run_dir / "logs", run.overrides)
    environment = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // nproc)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(config.shutdown_seconds),
    }
    settings = {key: value for key, value in environment.items() if key not in os.environ}
    if config.dry_run:
        print(" ".join(f"{key}={value}" for key, value in settings.items()), shlex.join(command))
        return
    (run.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    (run.run_dir / "outcome.json").unlink(missing_ok=True)
    process = subprocess.Popen(command, env=os.environ | settings)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    code = _wait(process)
    ended = training.outcome(run.run_dir)
    if code and ended is not None:
        code = ended["code"] or code
        # This line follows the output of torchrun.
        print(f"ended with code {code}: {ended['cause']}", file=sys.stderr)
    sys.exit(code)


def torchrun(nproc: int, logs: Path, overrides: list[str]) -> list[str]:
    """Returns the command line of torchrun.

    The output of each rank goes to its own file, and that of rank 0 also to the terminal.
    """
    options = ["--standalone", "--nproc-per-node", str(nproc), "--log-dir", str(logs)]
    options += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    options += ["--redirects", "3", "--tee", "3", "--local-ranks-filter", "0"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *options),
        *("-m", "pretrain", *overrides),
    ]


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:  # torchrun and the ranks received it too, and save
            continue


def check(config: PretrainConfig, nproc: int) -> None:
    """Raises InputError if the run would be refused with `nproc` processes on this machine."""
    import torch

    from pretrain.checks import Job
    from pretrain.config import device_of
    from pretrain.planning.auto import available_memory
    from pretrain.preflight import preflight

    device = device_of(config.device, "cuda" if torch.cuda.is_available() else "cpu")
    memory = available_memory() // nproc
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    preflight(config, Job(nproc, device, ranks_per_node=nproc, memory_bytes=memory))


def gpus() -> int:
    """Returns the number of GPUs of this machine, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())
