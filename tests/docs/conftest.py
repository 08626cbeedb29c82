"""Folders with the files that the pages of README and docs may use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.checker import Checker


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with the output of `make demo`, the first command of README."""
    folder = tmp_path_factory.mktemp("docs") / "demo"
    folder.mkdir()
    assert Checker(folder).page("demo", "```\npython -m launch demo\n```\n") == []
    assert (folder / "runs/demo/export/pretrained/config.json").is_file()
    return folder


@pytest.fixture
def page_folder(demo: Path, tmp_path: Path) -> Path:
    """A folder in which the commands of a page are tried."""
    return shutil.copytree(demo, tmp_path / "page")
