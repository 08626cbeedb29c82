"""The commands that the page shows and runs; the page runs nothing else."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.entry import CONF_DIR
from conf.errors import InputError
from launch import training
from pretrain.health.stop import STOP_FILE

NAME = re.compile(r"[\w.-]+")
LOG_LINES = 15
DATA_FOLDER = Path("data")


def choices(group: str) -> list[str]:
    """Returns the names of the files of a config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def corpora(folder: Path = DATA_FOLDER) -> list[str]:
    """Returns the folders of tokenized corpora."""
    return sorted(str(path.parent) for path in folder.glob("*/manifest.json"))


def runs(folder: Path) -> list[str]:
    """Returns the run folders that have metrics, the most recent one first."""
    found = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    return [str(path.parent) for path in found]


@dataclass(frozen=True)
class Form:
    """The choices on the page; `more` holds overrides of pretrain as on a command line."""

    name: str
    model: str
    recipe: str
    optim: str
    data: str
    processes: int
    cluster: str
    runs: Path
    more: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"name={self.name!r}: not a valid name of a run folder. Use only letters, digits, "
                "dots, dashes and underscores."
            )
        if not self.data:
            raise InputError(
                "data: no corpus is chosen. Choose one, or make one under Data or with "
                "python -m data_pipeline tokenize."
            )

    @property
    def run_dir(self) -> Path:
        """Returns the folder of the run."""
        return self.runs / self.name

    def overrides(self) -> list[str]:
        """Returns the overrides of `python -m pretrain`. Raises InputError if `more` is invalid."""
        chosen = {"model": self.model, "recipe": self.recipe, "optim": self.optim}
        chosen |= {"data.folder": self.data, "name": self.name, "run_dir": str(self.run_dir)}
        return [*(f"{key}={value}" for key, value in chosen.items()), *split_overrides(self.more)]

    def train(self, *options: str) -> list[str]:
        """Returns the command that trains on this machine, with `options` of `launch local`."""
        return ["launch", "local", f"nproc={self.processes}", *options, "--", *self.overrides()]

    def plan(self) -> list[str]:
        """Returns the command that plans the run on the chosen cluster and writes a page."""
        where = [f"cluster={self.cluster}", f"out={self.plan_page}", "overwrite=true"]
        return ["launch", "plan", *where, "--", *self.overrides()]

    @property
    def plan_page(self) -> Path:
        """Returns the path of the page of the plan."""
        return self.runs / f"{self.name}.plan.html"


def tokenize(corpus: str, tokenizer: str, more: str, folder: Path = DATA_FOLDER) -> list[str]:
    """Returns the command that tokenizes a corpus. Raises InputError if `more` is invalid."""
    chosen = [f"corpus={corpus}", f"tokenizer={tokenizer}", f"out={folder / corpus}"]
    return ["data_pipeline", "tokenize", *chosen, *split_overrides(more)]


def split_overrides(more: str) -> list[str]:
    """Returns the overrides in a text field. Raises InputError if its quotes do not match."""
    try:
        return shlex.split(more)
    except ValueError as error:
        raise InputError(
            f"more overrides: {more!r} has unbalanced quotes ({error}). Correct the quotes."
        ) from None


def stop(run: str) -> list[str]:
    """Returns the command that makes a run save a checkpoint and end."""
    return ["launch", "stop", f"run={run}"]


def samples(run: str, prompts: Path, tokens: int) -> list[str]:
    """Returns the command that continues prompts with the newest checkpoint of a run."""
    return [
        *("eval", "generate", f"model={run}", f"prompts_file={prompts}"),
        *(f"max_new_tokens={tokens}", "temperature=0.7", "repetition_penalty=1.1"),
        f"out={run}/samples/newest.jsonl",  # the report of the run reads this folder
        "overwrite=true",
    ]


def report(run: str) -> list[str]:
    """Returns the command that writes the report of a run."""
    return ["eval", "report", f"run={run}", f"out={run}/report.html", "overwrite=true"]


def chat(model: str, host: str, port: int) -> list[str]:
    """Returns the command that serves a model and a chat page."""
    ports = [f"port={port}", f"api_port={port + 1}"]
    return ["eval", "serve", f"model={model}", f"host={host}", *ports]


def shell_form(command: list[str]) -> str:
    """Returns a command as a line that can be pasted into a shell."""
    return "python -m " + shlex.join(command)


def run_now(command: list[str]) -> str:
    """Returns the output of a command. Raises InputError with its last line if it fails."""
    return training.answer(command, timeout_seconds=900)


@dataclass
class BackgroundCommands:
    """Commands that run in the background of the page, each with a unique key."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, key: str, command: list[str], log: Path) -> None:
        """Starts a command in its own session, so that Ctrl-C in the page's terminal spares it.

        Raises:
            InputError: a command with this key is running.
        """
        if self.runs(key):
            raise InputError(f"{key} is already running. Stop it first.")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            self.processes[key] = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def runs(self, key: str) -> bool:
        """Returns whether the command of a key is running."""
        process = self.processes.get(key)
        return process is not None and process.poll() is None

    def end(self, key: str) -> None:
        """Terminates the command of a key, if it is running."""
        process = self.processes.pop(key, None)
        if process is not None and process.poll() is None:
            process.terminate()  # SIGINT is ignored by a page started with `&` and its children
            process.wait(60)


def train(background: BackgroundCommands, form: Form) -> str:
    """Starts or resumes a run, and returns the commands that it ran.

    Raises:
        InputError: the run would be refused.
    """
    command = form.train()
    line = shell_form(command)
    stop_file = form.run_dir / STOP_FILE
    was_stopped = stop_file.exists() and not background.runs(str(form.run_dir))
    if was_stopped:
        stop_file.unlink()
        line = f"rm {shlex.quote(str(stop_file))}\n{line}"
    try:
        run_now(form.train("dry_run=true"))
    except InputError:
        if was_stopped:
            stop_file.touch()
        raise
    background.start(str(form.run_dir), command, form.run_dir / "ui.log")
    return line


def tail(path: Path) -> str:
    """Returns the last lines of a log, or '' if it does not exist."""
    if not path.exists():
        return ""
    with path.open(errors="replace") as file:
        return "".join(deque(file, LOG_LINES))


def loss_curves(run: Path) -> dict[str, list[Any]]:
    """Returns columns of step, loss and series (training, held out) from metrics.jsonl."""
    found: dict[str, list[Any]] = {"step": [], "loss": [], "series": []}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the last line may be incomplete
            continue
        series = {"train": "training", "validation": "held out"}.get(record["kind"])
        if series:
            found["step"].append(record["step"])
            found["loss"].append(record["loss"])
            found["series"].append(series)
    return found
