"""Installs Debian programs that tests need, if they are missing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.patience import limit

SECONDS = 240
LOCK = Path(tempfile.gettempdir(), f"headwater-tests-apt-{os.geteuid()}.lock")


def why_not(programs: tuple[str, ...], *packages: str) -> str:
    """Returns why programs are missing, or an empty string if they are available.

    As root they are installed by apt-get, once for all workers of pytest.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the next one finds them, and apt-get its own lock free
        said = "" if all(map(shutil.which, programs)) else _install(packages)
    missing = [name for name in programs if not shutil.which(name)]
    advice = f"apt-get install {' '.join(packages)}"
    return f"{', '.join(missing)} not found: {advice} ({said})" if missing else ""


def _install(packages: tuple[str, ...]) -> str:
    """Runs apt-get and returns its final message; refreshes package lists if they are outdated."""
    if os.geteuid() or not shutil.which("apt-get"):
        return "as root these tests do it themselves, where there is apt-get"
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    said = ""
    for command in (install, ["apt-get", "update", "-qq"], install):
        try:
            done = subprocess.run(
                command, env=quiet, capture_output=True, text=True, timeout=limit(SECONDS)
            )
        except subprocess.TimeoutExpired:
            return f"{command[1]} took more than {SECONDS} s"
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if command is install and done.returncode == 0:
            break
    return said
