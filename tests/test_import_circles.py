"""There are no import circles in the product, of any length.

Imports count at the top, inside a function and for type checking.
"""

from __future__ import annotations

import tomllib

import grimp

from tests.conftest import ROOT


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that reach each other through imports.

    imports: module -> modules that it imports.
    """
    reached: dict[str, set[str]] = {}
    for start in imports:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in imports[waiting.pop()] - seen:
                seen.add(module)
                waiting.append(module)
        reached[start] = seen
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
    }
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_no_file_imports_itself_by_way_of_others() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = settings["tool"]["importlinter"]["root_packages"]
    graph = grimp.build_graph(*packages, cache_dir=None)
    assert len(graph.modules) > 200
    imports = {
        module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules
    }
    assert circles(imports) == []


def test_a_circle_is_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles(imports) == [["a", "b", "c"]]
