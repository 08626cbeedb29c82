"""Copies the code of the project, so that later changes do not reach jobs that wait or run."""

from __future__ import annotations

import shutil
from pathlib import Path

from conf.outputs import Kind, Output

ROOT = Path(__file__).parent.parent
PACKAGES = ("conf", "pages", "data_pipeline", "model", "pretrain", "finetune", "eval", "launch")
INSTALLATION = ("setup.py", "pyproject.toml", "README.md", "constraints*.txt")
CODE = Kind(
    "a copy of its code",
    lambda folder: (folder / "conf" / "entry.py").is_file(),
    lambda _: (
        lambda name: name.split("/")[0] in PACKAGES or any(map(Path(name).match, INSTALLATION))
    ),
)


def copy_code(folder: Path, installable: bool = False) -> None:
    """Replaces the folder with a copy of the packages in their current state.

    Args:
        folder: The copy, a folder that this function made before or that does not exist.
        installable: Whether the copy has the files with which pip installs it.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    with Output(folder, CODE, overwrite=True, key="run_dir").folder() as new:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, new / name, ignore=ignored)
        if installable:
            for pattern in INSTALLATION:
                for path in ROOT.glob(pattern):
                    shutil.copy(path, new / path.name)
