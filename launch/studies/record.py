"""The record of a study's runs: `runs.json` in its folder, and the rules for what starts again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import EXIT_CHECKPOINT, EXIT_REQUEUE
from conf.files import write_text
from launch.slurm.verdict import FINAL, newest_step
from launch.training import outcome

FILE = "runs.json"
MAX_STARTS = 5
"""Number of starts in a row without a new checkpoint after which a run has failed."""


def is_final(code: int) -> bool:
    """Returns True for an exit code after which another start will not help.

    A checkpoint that cannot be saved may be saved by the next start.
    """
    return code in FINAL and code != EXIT_CHECKPOINT


@dataclass
class RunRecord:
    """The state of a run that has not finished.

    Attributes:
        step: Newest checkpoint at the last end, or None.
        starts: Number of starts in a row that ended without a newer checkpoint.
        code: Exit code of a run that has failed for good, or None.
        cause: Sentence that says why.
    """

    step: int | None = None
    starts: int = 0
    code: int | None = None
    cause: str = ""

    @property
    def has_failed(self) -> bool:
        """Returns True if the run does not start again on its own."""
        return self.code is not None


class Records:
    """The records of all runs of a study, which are written after each change."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            known = {}
        self.runs = {name: RunRecord(**fields) for name, fields in known.items()}

    def of(self, name: str) -> RunRecord:
        """Returns the record of a run."""
        return self.runs.setdefault(name, RunRecord())

    def fail(self, name: str, code: int, cause: str) -> None:
        """Records that a run has failed for good."""
        self.of(name).code, self.of(name).cause = code, cause
        self.write()

    def ended(self, name: str, run_dir: Path, code: int, cause: str) -> None:
        """Records the end of a run that has not finished.

        The run has failed if its exit code means that another start will not help, or after
        MAX_STARTS starts in a row without a new checkpoint.

        Args:
            name: The run.
            run_dir: Its folder.
            code: Exit code of its process.
            cause: The reason if the run has not recorded one.
        """
        ended = outcome(run_dir) or {"code": code, "cause": cause}
        record, step = self.of(name), newest_step(run_dir)
        record.starts = 1 if step != record.step else record.starts + 1
        record.step = step
        if is_final(ended["code"]) or (
            ended["code"] != EXIT_REQUEUE and record.starts >= MAX_STARTS
        ):
            record.code, record.cause = ended["code"] or code, str(ended["cause"])
        self.write()

    def forget_failures(self) -> None:
        """Lets the runs that have failed start again."""
        for record in self.runs.values():
            record.code, record.cause, record.starts = None, "", 0
        self.write()

    def write(self) -> None:
        """Writes the file."""
        content: dict[str, Any] = {name: asdict(record) for name, record in self.runs.items()}
        write_text(self.path, json.dumps(content, indent=1))
