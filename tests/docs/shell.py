"""Splits a command line like bash does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.docs.extract import TOOLS

RECORD = "".join(f'{tool}() {{ printf "%s\\0" "$#" {tool} "$@" >>"$RECORD"; }}\n' for tool in TOOLS)
"""Shell functions that replace the tools and record how they were called."""


def calls(line: str, cwd: Path, record: Path) -> tuple[list[list[str]], str]:
    """Returns the words of each tool that the line calls, and bash's message if it failed.

    The line runs in `cwd`, so that globs and redirections find the files there.
    """
    record.write_bytes(b"")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{RECORD}\n{line}"],
        cwd=cwd,
        env=os.environ | {"RECORD": str(record)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    words = record.read_text().split("\0")[:-1]
    found = []
    while words:
        count = int(words[0])
        found.append(words[1 : count + 2])
        words = words[count + 2 :]
    return found, done.stderr.strip().split("\n")[0] if done.returncode else ""
