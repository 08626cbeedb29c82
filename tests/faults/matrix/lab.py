"""The laboratory for faults: a small corpus, runs of twelve steps, and uninterrupted runs.

The outcome of a trial is compared with the uninterrupted runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conf.errors import EXIT_FAILED
from data_pipeline.store.checksums import read_with_checksums
from pretrain.checkpoints import files, read
from tests.conftest import ROOT
from tests.corpora import make_corpus
from tests.faults.matrix import Outcome
from tests.patience import limit
from tests.runs import arguments, ledger, records
from tests.warm import Ended, Warm

STEPS, EVERY = 12, 3
QUICK: dict[str, Any] = {
    "recipe__stages__short__tokens": 2048 * 6,
    "recipe__stages__long__tokens": 2048 * 6,
    "checkpoint__every_steps": EVERY,
    "checkpoint__keep_last": 3,
    "validation__every_steps": 0,
}
"""Twelve steps, a change of stage after the sixth, a checkpoint every third step."""
PATIENCE = 90
"""Seconds after which a start counts as hung; every start takes a few seconds here."""


class Lab:
    """Makes runs and corpora for trials.

    Attributes:
        folder: A temporary folder for everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = with_sums(make_corpus(folder / "corpus").folder)
        self.warm = Warm(ROOT, patience=PATIENCE)
        self._whole: dict[int, Run] = {}
        self._count = 0

    def run(self, corpus: Path | None = None) -> Run:
        """Returns a run that has not started."""
        self._count += 1
        folder = self.folder / f"trial_{self._count}"
        return Run(self, folder / "run", corpus or self.corpus)

    def whole(self, processes: int = 2) -> Run:
        """Returns an uninterrupted run."""
        if processes not in self._whole:
            run = self.run()
            ended = run.start(processes=processes)
            assert set(ended.codes) == {0}, ended.said
            self._whole[processes] = run
        return self._whole[processes]

    def stopped(self) -> Run:
        """Returns a run on two processes that ended after step 7, with checkpoints of 3 and 6."""
        if 0 not in self._whole:
            run = self.run()
            assert set(run.start(stop_after=7).codes) == {0}
            self._whole[0] = run
        run = self.run()
        shutil.copytree(self._whole[0].dir, run.dir)
        return run

    def damaged_corpus(self) -> Path:
        """Returns a copy of the corpus, to be damaged."""
        self._count += 1
        return Path(shutil.copytree(self.corpus, self.folder / f"corpus_{self._count}"))

    def close(self) -> None:
        """Ends the process that forks."""
        self.warm.close()


@dataclass
class Run:
    """A run folder, and the command that trains in it."""

    lab: Lab
    dir: Path
    corpus: Path
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.dir / "checkpoints"

    def command(self, fault: tuple[str, int | str, int | str] | None, **changes: Any) -> list[str]:
        """Returns the arguments of `python -m`; `fault` is a name of FAULTS, rank and step."""
        plain = arguments(self.corpus, self.dir, **QUICK | self.changes | changes)
        if fault is None:
            return plain
        return ["tests.faults.faulty", *map(str, fault), *plain[1:]]

    def start(
        self,
        fault: tuple[str, int | str, int | str] | None = None,
        processes: int = 2,
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> Ended:
        """Trains on ranks forked from a process that has made the imports."""
        said = self.dir.parent / "said"
        return self.lab.warm.run(
            self.command(fault, **changes), processes, said, **(environment or {})
        )

    def said(self) -> str:
        """Returns what all ranks of the last start printed."""
        files = sorted((self.dir.parent / "said").glob("rank*.txt"))
        return "".join(file.read_text(errors="replace") for file in files)

    def alone(self, wrap: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Trains in a new process, inside a shell line whose `%s` is the command.

        Raises subprocess.TimeoutExpired if that takes too long.
        """
        command = shlex.join([sys.executable, "-m", *self.command(None, **changes)])
        return subprocess.run(
            ["unshare", "-rm", "bash", "-c", wrap.replace("%s", command)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=limit(PATIENCE),
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Returns the events of that name in metrics.jsonl."""
        return [record for record in records(self.dir, "event") if record["event"] == name]

    def outcome(self) -> dict[str, Any]:
        """Returns outcome.json, or an empty dict if it does not exist."""
        path = self.dir / "outcome.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, newest first."""
        found = map(files.step_of, (path.name for path in files.checkpoints_in(self.checkpoints)))
        return [step for step in found if step is not None]

    def last_step(self) -> int:
        """Returns the last step in metrics.jsonl."""
        path = self.dir / "metrics.jsonl"
        return max((r["step"] for r in records(self.dir)), default=0) if path.exists() else 0

    def goes_on(self, wrong: str = "", processes: int = 2, **changes: Any) -> Outcome:
        """Runs the same command again to the end, and compares it with the uninterrupted run.

        It is right if weights, tokens and losses are equal, bit for bit. `wrong` is what was wrong
        before.
        """
        reached, began = self.last_step(), time.time()
        ended = self.start(processes=processes, **changes)
        if hung(ended):
            return Outcome(wrong or "the second start hung", hang=True)
        if set(ended.codes) != {0}:
            return Outcome(wrong or f"the second start ended with {ended.codes}: {ended.said}")
        found = re.search(r"resuming after step (\d+)", ended.said)
        resumed = int(found.group(1)) if found else 0
        if "is finished" in ended.said:  # its last step was saved before the fault
            resumed = STEPS
        first = [r["time"] for r in records(self.dir) if r["step"] == resumed + 1]
        differs = self.differs(self.lab.whole(processes))
        return Outcome(
            wrong or differs,
            wrong_resume=bool(differs),
            recovery_seconds=first[0] - began if first else None,
            lost=max(0, reached - resumed),
        )

    def differs(self, whole: Run, but: int = 0) -> str:
        """Returns in what two finished runs differ; the loss of step `but` may differ."""
        if ledger(self.dir) != ledger(whole.dir):
            return "other tokens than an uninterrupted run"
        numbers = [
            [(r["loss"], r["grad_norm"]) for r in records(run.dir) if r["step"] != but]
            for run in (self, whole)
        ]
        if numbers[0] != numbers[1]:
            return "other losses than an uninterrupted run"
        ours, theirs = (dict(read.weights(r.checkpoints / f"step_{STEPS}")) for r in (self, whole))
        if ours.keys() != theirs.keys() or not all(
            torch.equal(ours[name], theirs[name]) for name in theirs
        ):
            return "other weights than an uninterrupted run"
        left = [path.name for path in self.checkpoints.glob("*.tmp*")]
        return f"{left} were left" if left else ""


def with_sums(folder: Path) -> Path:
    """Writes the checksums of a corpus's shards, like `python -m data_pipeline` does."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for entries in (of for split in manifest["splits"].values() for of in split.values()):
        for entry in entries:
            shard = folder / entry["file"]
            sums = b"".join(
                s.tobytes() for _, s in read_with_checksums(shard.with_name(shard.name + ".bin"))
            )
            shard.with_name(shard.name + ".sums").write_bytes(sums)
            entry["sums"] = True
    path.write_text(json.dumps(manifest))
    return folder


def hung(ended: Ended) -> bool:
    """Returns True if a rank had to be ended by the alarm."""
    return -signal.SIGALRM in ended.codes


def check(ended: Ended, codes: set[int], *said: str, also: bool = True) -> str:
    """Returns what is wrong with how a start ended, or an empty string.

    A code other than one of `codes` came first (ranks that are ended because of the first one are
    killed), or an expected text is missing in the output.
    """
    if hung(ended):
        return "hung"
    own = set(ended.codes)
    if -signal.SIGKILL not in codes:
        own -= {-signal.SIGKILL}
    elif -signal.SIGKILL in own:
        own -= {EXIT_FAILED}  # a rank that lost the killed one, and ended before it was killed too
    if not own or not own <= codes:
        return f"ended with {ended.codes}, expected {sorted(codes)}: {ended.said[-300:]}"
    missing = [part for part in said if part not in ended.said]
    if missing:
        return f"did not say {missing[0]!r}: {ended.said[-300:]}"
    return "" if also else "the fault's traces are not as they must be"


def drawn(row: int, trial: int) -> random.Random:
    """Returns the random generator of a trial."""
    return random.Random(1000 * row + trial)
