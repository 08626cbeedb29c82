"""What the page can do, as the commands that do it: it shows each one, and runs nothing else."""

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
from pretrain.health.stop import STOP_FILE

NAME = re.compile(r"[\w.-]+")
LOG_LINES = 15


def choices(group: str) -> list[str]:
    """The files of a config group, by name."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def corpora(folder: Path = Path("data")) -> list[str]:
    """Folders of tokenized shards."""
    return sorted(str(path.parent) for path in folder.glob("*/manifest.json"))


def runs(folder: Path) -> list[str]:
    """Run folders that have metrics, the one that was written last first."""
    found = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    return [str(path.parent) for path in found]


@dataclass(frozen=True)
class Form:
    """What is chosen on the page. more: further overrides of pretrain, as on a command line."""

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
                f"name={self.name!r}: expected letters, digits, dots and dashes: it names a folder."
            )
        if not self.data:
            raise InputError(
                "data: no corpus is chosen; make one under Data, or with python -m data_pipeline "
                "tokenize."
            )

    @property
    def run_dir(self) -> Path:
        """Where the run will lie."""
        return self.runs / self.name

    def overrides(self) -> list[str]:
        """Of `python -m pretrain`. Raises InputError where `more` is no command line."""
        chosen = {"model": self.model, "recipe": self.recipe, "optim": self.optim}
        chosen |= {"data.folder": self.data, "name": self.name, "run_dir": str(self.run_dir)}
        return [*(f"{key}={value}" for key, value in chosen.items()), *words(self.more)]

    def train(self, *options: str) -> list[str]:
        """Trains on this machine. options: of `launch local`."""
        return ["launch", "local", f"nproc={self.processes}", *options, "--", *self.overrides()]

    def plan(self) -> list[str]:
        """Plans the same run on the cluster that is chosen, and writes a page."""
        where = [f"cluster={self.cluster}", f"out={self.plan_page}", "overwrite=true"]
        return ["launch", "plan", *where, "--", *self.overrides()]

    @property
    def plan_page(self) -> Path:
        """The page of the plan."""
        return self.runs / f"{self.name}.plan.html"


def tokenize(corpus: str, tokenizer: str, more: str, folder: Path = Path("data")) -> list[str]:
    """Makes the shards of a corpus. Raises InputError where `more` is no command line."""
    chosen = [f"corpus={corpus}", f"tokenizer={tokenizer}", f"out={folder / corpus}"]
    return ["data_pipeline", "tokenize", *chosen, *words(more)]


def words(more: str) -> list[str]:
    """The overrides of a field. Raises InputError where it is no command line."""
    try:
        return shlex.split(more)
    except ValueError as error:
        raise InputError(f"more overrides: {error} in {more!r}.") from None


def stop(run: str) -> list[str]:
    """Ends a run; it saves."""
    return ["launch", "stop", f"run={run}"]


def samples(run: str, prompts: Path, tokens: int) -> list[str]:
    """Lets the newest checkpoint of a run go on with prompts."""
    return [
        *("eval", "generate", f"model={run}", f"prompts_file={prompts}"),
        *(f"max_new_tokens={tokens}", "temperature=0.7", "repetition_penalty=1.1"),
        f"out={run}/samples/newest.jsonl",  # where its report finds them
        "overwrite=true",
    ]


def report(run: str) -> list[str]:
    """Writes the page about a run."""
    return ["eval", "report", f"run={run}", f"out={run}/report.html", "overwrite=true"]


def chat(model: str, port: int) -> list[str]:
    """Serves a model, and a page to chat with it."""
    return ["eval", "serve", f"model={model}", f"port={port}", f"api_port={port + 1}"]


def shown(command: list[str]) -> str:
    """As one types it."""
    return "python -m " + shlex.join(command)


def run_now(command: list[str], seconds: float = 900) -> str:
    """What a command says. Raises InputError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).split("\n")[-1]
        raise InputError(said.removeprefix("error: ") or f"it ended with {done.returncode}")
    return done.stdout


@dataclass
class Started:
    """Commands that run beside the page, by what they are for."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, key: str, command: list[str], log: Path) -> None:
        """Starts one; a session of its own, so that a Ctrl-C for the page does not reach it.
        Raises InputError where one runs for that."""
        if self.runs(key):
            raise InputError(f"{key} is running: stop it first.")
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
        """Whether it has not ended."""
        process = self.processes.get(key)
        return process is not None and process.poll() is None

    def end(self, key: str) -> None:
        """Ends it."""
        process = self.processes.pop(key, None)
        if process is not None and process.poll() is None:
            process.terminate()  # not SIGINT, which a page started with `&` and its children ignore
            process.wait(60)


def train(started: Started, form: Form) -> str:
    """Starts a run, or goes on with it; returns what was run. Raises InputError where the run would
    be refused."""
    command = form.train()
    line = shown(command)
    stopped = form.run_dir / STOP_FILE
    was_stopped = stopped.exists() and not started.runs(str(form.run_dir))
    if was_stopped:
        stopped.unlink()
        line = f"rm {shlex.quote(str(stopped))}\n{line}"
    try:
        run_now(form.train("dry_run=true"))
    except InputError:
        if was_stopped:
            stopped.touch()
        raise
    started.start(str(form.run_dir), command, form.run_dir / "ui.log")
    return line


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.exists():
        return ""
    with path.open(errors="replace") as file:
        return "".join(deque(file, LOG_LINES))


def curves(run: Path) -> dict[str, list[Any]]:
    """Of metrics.jsonl: step, value and series (training, held out) of the loss."""
    found: dict[str, list[Any]] = {"step": [], "loss": [], "of": []}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the last one, half written
            continue
        of = {"train": "training", "validation": "held out"}.get(record["kind"])
        if of:
            for key, value in (("step", record["step"]), ("loss", record["loss"]), ("of", of)):
                found[key].append(value)
    return found
