"""Breaks a save at a chosen point: `HEADWATER_FAULT=kill:manifest:10` in a test's environment.

`kill` kills the trainer and the process that writes, `die` the latter alone, and `hang` stops it,
once the save of step 10 has reached the phase. `tests.warm` installs it in the ranks that it forks.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

FAULT = "HEADWATER_FAULT"


def install() -> None:
    """Wraps the functions of a save that separate the phases; call it in the trainer."""
    from torch.distributed.checkpoint import FileSystemWriter

    from pretrain.checkpoints import commit, files

    action, phase, step = os.environ[FAULT].split(":")
    trainer = os.getpid()

    def reach(reached: str, path: str | os.PathLike[str]) -> None:
        found = re.search(r"step_(\d+)", str(path))
        if reached != phase or found is None or found[1] != step:
            return
        if action == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if action == "kill":
            os.kill(trainer, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any], before: str = "", after: str = "") -> Any:
        """Returns the function with phases before and after it; its first argument is a path."""

        @wraps(function)
        def call(path: Path, *arguments: Any, **settings: Any) -> Any:
            reach(before, path)
            result = function(path, *arguments, **settings)
            reach(after, path)
            return result

        return call

    class Writer(FileSystemWriter):
        def write_data(self, *arguments: Any) -> Any:
            results = super().write_data(*arguments)
            results.wait()
            reach("written", self.path)
            return results

    write_durably = files.write_durably

    def write_latest(path: Path, content: Any) -> None:
        if path.name != files.LATEST:
            write_durably(path, content)
            return
        reach("renamed", content["checkpoint"])
        write_durably(path, content)
        reach("latest", content["checkpoint"])

    removed = commit.remove

    def remove(path: Path) -> None:
        newest = files.checkpoints_in(path.parent)[0]  # the one whose save removes others
        removed(path)
        reach("pruned", newest)

    for name, value in {
        "write_shards": around(commit.write_shards, "staged", "hashed"),
        "commit": around(commit.commit, before="agreed"),
        "FileSystemWriter": Writer,
        "remove": remove,
    }.items():
        setattr(commit, name, value)
    files.write_manifest = around(files.write_manifest, after="manifest")
    files.write_durably = write_latest
