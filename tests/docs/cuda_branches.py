"""Finds the places of the product where something happens on CUDA only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = (*("conf", "data_pipeline", "model", "pretrain", "finetune", "eval", "launch", "pages"),)
NAMES = re.compile(r"(cpu:\w+,)?(cuda|nccl)(:\w+)?|_dump_nccl\w*")
"""Values that a device, a backend or a function of CUDA has; not sentences that mention them."""
ATTRIBUTES = ("cuda", "is_cuda")


def is_branch(node: ast.AST) -> bool:
    """Returns whether a node is the name of a CUDA device or backend, or part of torch.cuda."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return NAMES.fullmatch(node.value) is not None
    return isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES


def places(source: str) -> set[str]:
    """Returns the functions and `Class.method`s of a file with such nodes, '' for the file itself.

    Functions within functions count as part of the outer one.
    """
    found: set[str] = set()

    def visit(node: ast.AST, scope: str, closed: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if is_branch(child):
                found.add(scope)
            inner, ends = scope, closed
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not closed:
                inner = f"{scope}.{child.name}".lstrip(".")
                ends = isinstance(child, ast.FunctionDef)
            visit(child, inner, ends)

    visit(ast.parse(source), "", False)
    return found


def branches(root: Path) -> Iterator[str]:
    """Yields `path` or `path:name` of every such place of the product, sorted."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for place in sorted(places(path.read_text())):
                yield f"{name}:{place}" if place else name
