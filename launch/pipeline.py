"""Runs a sequence of commands that a config describes, and skips those done by earlier calls.

Each step is a separate process with a log file. A step is done if it succeeded with the same
command after the same previous steps, and its output exists. A second call therefore runs only the
steps that are missing or changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from conf.errors import InputError
from conf.files import write_text


@dataclass
class StepConfig:
    """One command of a pipeline.

    title: text that is shown while the step runs.
    command: the arguments of `python -m`, such as `pretrain name=demo`.
    makes: file or folder that exists when the step is done.
    processes: number of processes of `torchrun`; 0 for a plain process without it.
    """

    title: str = MISSING
    command: str = MISSING
    makes: str = MISSING
    processes: int = 0


@dataclass
class PipelineConfig:
    """A pipeline: steps by name, in the order in which they run.

    name: name of the run.
    out: folder of the logs and of `pipeline.json`, which records the steps that are done.
    data: folder of the tokenized corpus.
    processes: number of processes of the distributed steps.
    steps: the steps by name, in the order in which they run.
    """

    name: str = MISSING
    out: str = MISSING
    data: str = MISSING
    processes: int = 1
    steps: dict[str, StepConfig] = field(default_factory=dict)


class StepFailed(Exception):
    """Raised if a step's process exits with a code other than 0, or makes no output."""

    def __init__(self, name: str, code: int, log: Path, tail: str) -> None:
        super().__init__(f"step '{name}' ended with code {code} (log: {log}):\n{tail}")
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """Result of a step: whether it was skipped as already done, and the seconds it took."""

    name: str
    skipped: bool
    seconds: float


class Pipeline:
    """Runs the steps of a config."""

    def __init__(self, config: PipelineConfig) -> None:
        if not config.steps:
            raise InputError("steps is empty. Add at least one step.")
        self.config = config
        self.logs = Path(config.out) / "logs"
        self._record = Path(config.out) / "pipeline.json"

    def run(self, on_line: Callable[[str, str], None]) -> Iterator[Outcome]:
        """Runs the steps that are not done, and yields the outcome of every step.

        `on_line(name, line)` is called with each line that a step prints.

        Raises:
            StepFailed: a step failed; the steps after it do not run.
        """
        done = json.loads(self._record.read_text()) if self._record.is_file() else {}
        chain = ""
        for name, step in self.config.steps.items():
            chain = hashlib.sha256(f"{chain}{step.command}{step.processes}".encode()).hexdigest()
            known = done.get(name, {})
            if known.get("chain") == chain and Path(step.makes).exists():
                yield Outcome(name, True, known["seconds"])
                continue
            started = time.monotonic()
            self._run_step(name, step, on_line)
            if not Path(step.makes).exists():
                raise StepFailed(
                    name, 0, self.logs / f"{name}.log", f"The step did not make {step.makes}."
                )
            seconds = time.monotonic() - started
            done[name] = {"chain": chain, "seconds": round(seconds, 1)}
            write_text(self._record, json.dumps(done, indent=1))
            yield Outcome(name, False, seconds)

    def _run_step(self, name: str, step: StepConfig, on_line: Callable[[str, str], None]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        lines: list[str] = []
        with (
            log.open("w") as file,
            subprocess.Popen(
                arguments(step),
                env=environment(step),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    lines.append(line)
                    on_line(name, line.rstrip())
                code = process.wait()
            except BaseException:
                process.terminate()  # torchrun forwards the signal to its workers
                raise
        if code:
            raise StepFailed(name, code, log, "".join(lines[-15:]))


def arguments(step: StepConfig) -> list[str]:
    """Returns the command line of a step."""
    command = [sys.executable, "-u", "-m"]
    if step.processes:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(step.processes), "-m"]
    return command + shlex.split(step.command)


def environment(step: StepConfig) -> dict[str, str]:
    """Returns this process's environment, with the cores divided among a step's processes."""
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, step.processes))
    return {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", **os.environ}
