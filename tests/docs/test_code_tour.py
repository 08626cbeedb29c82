"""The code tour names only files, folders and definitions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PLACE = re.compile(r"`((?:\w+/)+[\w.]*|\w+\.(?:py|toml))(?::([\w.]+))?`")
"""A path of the repository, and optionally a name in it."""
PLACES = PLACE.findall((ROOT / "docs/code_tour.md").read_text())


def definitions(path: Path) -> set[str]:
    """Returns the functions, classes, methods, fields and constants of a file, dotted."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                found.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return found


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_a_place_of_the_code_tour_exists(path, name):
    assert (ROOT / path).exists(), f"docs/code_tour.md: {path} does not exist"
    if name:
        found = definitions(ROOT / path)
        assert name in found, f"docs/code_tour.md: {path} has no {name}"


def test_the_code_tour_has_places():
    assert len(PLACES) > 60
    assert sum(bool(name) for _, name in PLACES) > 25
