"""Finds secrets and paths of a user's machine in text files that are about to be published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXT = (".json", ".jsonl", ".jinja", ".md", ".txt", ".yaml", ".yml")
"""Endings of text files. A file without an ending, such as LICENSE, is text, too."""
SHOWN = 8
"""Characters of a secret that are shown."""

_START = r"(?<![A-Za-z0-9_])"
SECRETS = {
    "a token of the Hugging Face Hub": _START + r"(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "a key of an OpenAI-compatible service": _START + r"sk-[A-Za-z0-9_-]{20,}",
    "a key of AWS": _START + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a token of GitHub": _START + r"(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})",
    "a token of GitLab": _START + r"glpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": _START + r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "a key of Google": _START + r"AIza[A-Za-z0-9_-]{35}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^\s/:@\"'<>]+:[^\s/:@\"'<>]{3,}@[A-Za-z0-9]",
}
"""Patterns of secrets, by what they are."""
HOME_PATH = (
    r"(?<![\w.-])/(?:home|Users)/[\w.-]+(?:/|\b)|(?<![\w./-])/root/[\w.-]|[A-Za-z]:\\+Users\\"
)
"""Pattern of a path in a home folder on Linux, macOS or Windows."""

_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in SECRETS.items()]
_PATHS = re.compile(HOME_PATH)


@dataclass(frozen=True)
class Leak:
    """A secret or a path in a file.

    Attributes:
        file: Name of the file in the repository.
        line: Number of the line, from 1.
        kind: What was found.
        shown: The beginning of it.
    """

    file: str
    line: int
    kind: str
    shown: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.kind} ({self.shown})"


def is_text(name: str) -> bool:
    """Returns whether the contents of a file of this name are searched."""
    suffix = Path(name).suffix.lower()
    return suffix in TEXT or not suffix


def leaks(name: str, text: str, home: str | None = None) -> Iterator[Leak]:
    """Yields the secrets and home paths in a text.

    Args:
        name: Name of the file in the repository.
        text: Its contents.
        home: The home folder of this user, which may be anywhere; None if it is not known.
    """
    own = home if home and len(Path(home).parts) > 1 else None
    for number, line in enumerate(text.splitlines(), 1):
        for kind, pattern in _PATTERNS:
            for found in pattern.finditer(line):
                yield Leak(name, number, kind, f"{found[0][:SHOWN]}...")
        found_path = _PATHS.search(line)
        if found_path:
            yield Leak(name, number, "a path of a home folder", _path_at(line, found_path.start()))
        elif own and (at := line.find(f"{own}/")) >= 0:
            yield Leak(name, number, "a path of a home folder", _path_at(line, at))


def _path_at(line: str, start: int) -> str:
    """Returns the path that begins at a position."""
    found = re.match(r"[^\s\"'`<>()]{1,60}", line[start:])
    return found[0] if found else line[start : start + SHOWN]
