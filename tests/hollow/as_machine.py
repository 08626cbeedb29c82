"""Runs a script or module with only the Python packages of another machine in sight.

    python -m tests.hollow -m tests.hollow.as_machine h200 --carried wheels script.py arguments...

`machines/h200.txt` lists the packages of that machine, one per line. `--carried` names a folder of
wheels that the script takes along. Imports of all other installed packages fail, and
`importlib.metadata` does not find them, so a script that needs one fails here first.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.metadata
import re
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

MACHINES = Path(__file__).parent / "machines"
ROOT = Path(__file__).parents[2]
ALWAYS = {"torch", "triton", "headwater", "setuptools", "pip"}


def normalized(name: str) -> str:
    """Returns a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def packages_of(machine: str, carried: Path | None = None) -> set[str]:
    """Returns the packages of a machine and of the wheels that are taken along."""
    lines = (MACHINES / f"{machine}.txt").read_text().splitlines()
    names = {normalized(line) for line in lines if line and not line.startswith("#")}
    if carried is not None:
        names |= {normalized(path.name.split("-")[0]) for path in carried.glob("*.whl")}
    return names | ALWAYS


class VisiblePackages:
    """A finder like `PathFinder`, for which only some top-level modules exist."""

    def __init__(self, hidden: Iterable[str]) -> None:
        self.hidden = frozenset(hidden)

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of a module, or None if its package is hidden."""
        if name.split(".")[0] in self.hidden:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    def find_distributions(self, *arguments: Any, **keywords: Any) -> Any:
        """Returns the distributions that importlib.metadata finds."""
        return importlib.machinery.PathFinder.find_distributions(*arguments, **keywords)

    @staticmethod
    def invalidate_caches() -> None:
        """Forgets cached folders."""
        importlib.machinery.PathFinder.invalidate_caches()


def hide_others(packages: set[str]) -> list[str]:
    """Hides the installed packages that are not in `packages`; returns the hidden modules."""
    modules = importlib.metadata.packages_distributions()
    hidden = sorted(
        module
        for module, distributions in modules.items()
        if module not in sys.stdlib_module_names
        and not module.startswith("_")
        and not any(_belongs(normalized(name), packages) for name in distributions)
    )
    filtered = VisiblePackages(hidden)
    sys.meta_path[:] = [
        filtered if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
    ]
    for name in [name for name in sys.modules if name.split(".")[0] in filtered.hidden]:
        del sys.modules[name]
    version = importlib.metadata.version

    def version_there(distribution_name: str) -> str:
        if not _belongs(normalized(distribution_name), packages):
            raise importlib.metadata.PackageNotFoundError(distribution_name)
        return version(distribution_name)

    importlib.metadata.version = version_there
    return hidden


def _belongs(name: str, packages: set[str]) -> bool:
    return name in packages or name.startswith("nvidia-")


def main() -> None:
    """Runs the script or module of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machine", choices=[path.stem for path in MACHINES.glob("*.txt")])
    parser.add_argument("--carried", type=Path, help="folder of wheels")
    parser.add_argument("script", help="file ending in .py, or module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    hide_others(packages_of(chosen.machine, chosen.carried))
    sys.argv = [chosen.script, *chosen.arguments]
    sys.path.insert(0, str(ROOT))
    if chosen.script.endswith(".py"):
        runpy.run_path(chosen.script, run_name="__main__")
    else:
        runpy.run_module(chosen.script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
