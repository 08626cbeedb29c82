"""Debian programs that tests need are installed once, or reported as missing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import debian

APT_GET = """#!/bin/sh
echo "$1" >> {folder}/log
case "$1 $(/bin/grep -c update {folder}/log)" in
"install 0") echo "E: Unable to locate package it" >&2; exit 100;;
"install 1") printf '' > {folder}/it; /bin/chmod +x {folder}/it;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the only folder of PATH, with an apt-get that knows packages after an update."""
    program = tmp_path / "apt-get"
    program.write_text(APT_GET.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def test_two_that_ask_install_once(folder):
    with ThreadPoolExecutor(2) as workers:
        asked = [workers.submit(debian.why_not, ("it",), "it") for _ in range(2)]
    assert [ask.result() for ask in asked] == ["", ""]
    assert (folder / "log").read_text().split() == ["install", "update", "install"]


def test_the_reason_is_what_apt_get_says(folder):
    (folder / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2; exit 100")
    assert debian.why_not(("it",), "it") == "it not found: apt-get install it (E: no network)"


def test_nothing_is_installed_without_root(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "it not found: apt-get install it (as root" in debian.why_not(("it",), "it")
    assert not (folder / "log").exists()
