"""Debian's packages that some tests need, installed once where that can be done."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

INSTALL_SECONDS = 400


def missing(programs: Sequence[str], packages: Sequence[str]) -> list[str]:
    """The programs that are not here, also after root has tried to install the packages; processes
    that ask at the same time wait for the first."""
    with (Path(tempfile.gettempdir()) / "headwater-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lacking = [program for program in programs if not shutil.which(program)]
        if lacking and os.geteuid() == 0 and shutil.which("apt-get"):
            install = f"apt-get install -y -qq --no-install-recommends {' '.join(packages)}"
            # A fresh image has no lists of packages.
            command = ["sh", "-c", f"{install} || {{ apt-get update -qq && {install}; }}"]
            quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=quiet, capture_output=True, timeout=INSTALL_SECONDS)
            lacking = [program for program in programs if not shutil.which(program)]
    return lacking
