"""Finds the files below folders or matched by globs, also through symbolic links."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from conf.errors import InputError


def files_under(root: str) -> Iterator[str]:
    """Yields the path of each file and each broken link below a folder, in any order.

    Raises:
        InputError: a folder cannot be read.
    """
    for folder, files in _walk(root, hidden=True):
        yield from (os.path.join(folder, file) for file in files)


def expand(pattern: str) -> list[str]:
    """Returns the sorted matches of a recursive glob.

    Unlike `glob.glob`, it does not follow links to folders around a loop.

    Raises:
        InputError: a folder cannot be read.
    """
    return sorted(_expand(pattern))


def _expand(pattern: str) -> set[str]:
    parts = pattern.split("/")
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    head, rest = "/".join([*parts[:at], ""]), "/".join(parts[at + 1 :])
    found: set[str] = set()
    for start in glob.glob(head) if head else ["."]:
        for folder, files in _walk(start, hidden=False):
            folder = folder if head else folder[2:]
            if at + 1 < len(parts):
                found |= _expand(os.path.join(glob.escape(folder), rest))
            else:
                found |= {folder, *(os.path.join(folder, file) for file in files)} - {""}
    return found


def _walk(root: str, hidden: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder with the names of its files.

    Each folder is read once: under its own name if it is below `root`, else under the name of the
    first link to it. A link to a folder that contains the link is not followed.

    Args:
        root: the outermost folder.
        hidden: whether to include names that begin with a dot.
    """
    seen: set[tuple[int, int]] = set()
    starts = [root]
    while starts:
        links: list[str] = []
        for start in starts:
            for folder, names, files in os.walk(start, onerror=_refuse):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    names.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                if not hidden:
                    names[:] = [name for name in names if not name.startswith(".")]
                    files = [name for name in files if not name.startswith(".")]
                paths = (os.path.join(folder, name) for name in names)
                links += [path for path in paths if os.path.islink(path)]
                yield folder, files
        # Links are followed last, so that files below `root` keep their names without links.
        starts = sorted(link for link in links if not _is_loop(link))


def _is_loop(link: str) -> bool:
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, place]) == target


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be read ({error.strerror}). Make the folder readable, or leave "
        "it out."
    ) from None
