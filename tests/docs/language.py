"""Finds words and openings that the project does not use, with a proposal for each.

`python -m tests.docs.language FOLDER_OR_FILE ...` lists them; `test_language.py` keeps them out.

Checked are docstrings, comments and string literals of Python files, comments of YAML, TOML, shell
and Make files, pages in Markdown and templates of HTML. Code in backticks is skipped.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".sbatch", ".sh", ".j2", ".html")
SKIPPED = ("tests/docs/language.py", "tests/docs/test_language.py")
"""These two files name the words themselves."""

OPENINGS = {
    "Of": "a noun or a verb: 'Documents of the split.', 'Returns the ...'",
    "As": "a full sentence: 'Returns ...', 'Formats ... like ...'",
    "It": "a full sentence with its subject",
    "Its": "a full sentence with its subject: 'Returns the ... of the run.'",
    "Their": "a full sentence with its subject",
    "Off": "'Disables ...'",
    "What": "a noun: 'Settings of ...', or 'Returns the ...'",
    "Who": "a noun",
    "Whose": "a noun",
    "Whether": "'Returns True if ...' or 'True if ...'",
    "Where": "a noun: 'Path of ...', 'Returns the place ...'",
    "When": "'Time at which ...', or a full sentence that begins with its subject",
    "How": "'Number of ...', 'Formats ...', 'Returns ...'",
}
"""First words that a docstring does not have, with what to write instead."""

WORDS = {
    r"\bbesides?\b": "next to; in addition to; except for",
    r"\baside\b": "separate; in the background; skipped (or name what happens)",
    r"\banew\b": "again; from the start",
    r"\bfor ever\b|\bforever\b": "permanently; indefinitely",
    r"\bnobody\b|\bno one's\b": "no process; no user; not ... anyone",
    r"\bwhoever\b": "a user who; the process that",
    r"\bany ?body\b|\bsome ?body\b": "a user; another program",
    r"(?<!there\s)\bis no (?!longer\b|more\b|less\b|other\b)": "is not a",
    r"(?<!there\s)\bare no (?!longer\b|more\b|less\b)": "are not",
    r"\b(?:goes|go|going|went|gone) on\b": "continue",
    r"\bspoken\b": "communicated; written",
    r"\btold\b": "reported; printed; given; detected",
    r"\b(?:come|comes|came) to (?!an end\b)": "reach; amount to",
    r"\bcomes? of it\b": "result",
    r"\btalk(?:s|ing|ed)?\b": "communicate; chat",
    r"\b(?:hand|hands|handed|handing) (?:in|on|over)\b": "submit; pass on; forward",
    r"\b(?:look|looks|looked|looking) at\b": "read; check; inspect; see",
    r"\b(?:let|lets|letting) in\b": "admit; select",
    r"\b(?:lies|lie|lay beside)\b": "is stored; is in; is",
    r"\bstands?\b(?! for\b|-)": "is; is written; is listed",
    r"\bbrings\b": "fetches; loads; adds",
    r"\bmeets\b": "joins; encounters; equals",
    r"\bheld against\b": "compared with",
    r"\b(?:hold|holds|held|holding)(?: \w+)? up\b": "block; delay",
    r"\bthere ?to\b|\bhere ?to\b": "to it",
    r"\breckon\b": "expect",
    r"(?<!which\s)\b(?:tokens|bytes|bits|MB|GB|megabytes|samples|steps|\d times|once|twice|lines?"
    r"|rows?|records?|questions|files?|sums?|tensors?|numbers?|process(?:es)?|tasks?|jobs?"
    r"|entr(?:y|ies)|choices?|scales?|FLOP/s|products?|sentences?|commands?|sequences|documents"
    r"|collectives?) an? (?:second|minute|day|step|rank|layer|process|GPU|source|row|line|file"
    r"|parameter|node|document|stage|split|shard|run|task|token|group|unit|block|matrix|choice"
    r"|model|command|question|metric|machine|channel|page|table)\b": (
        "'per' for 'a': one row per source"
    ),
}
"""Patterns that no text has, with what to write instead. A space matches a line break too."""


@dataclass(frozen=True)
class Text:
    """A piece of text of a file: its first line there, and whether it is a docstring."""

    line: int
    value: str
    is_docstring: bool = False


@dataclass(frozen=True)
class Finding:
    """A word or opening in a file, with the words around it and what to write instead."""

    path: str
    line: int
    word: str
    context: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}' in '{self.context}': write {self.instead}"


SPACE = r"(?:[^\S\n]+|[^\S\n]*\n[^\S\n]*)"
"""White space inside a paragraph."""
PATTERNS = [
    (re.compile(pattern.replace(" ", SPACE), re.IGNORECASE), instead)
    for pattern, instead in WORDS.items()
]


def findings(path: Path) -> list[Finding]:
    """Returns all findings of a file, in the order of its lines."""
    name = path.relative_to(ROOT).as_posix()
    found = []
    for text in texts(path):
        value = without_code(text.value)
        if text.is_docstring:
            first = re.match(r"\s*(\w+)", value)
            if first and first[1] in OPENINGS:
                line = text.line + value[: first.start(1)].count("\n")
                opening = f"{first[1]} ..."
                found.append(
                    Finding(name, line, opening, near(value, *first.span(1)), OPENINGS[first[1]])
                )
        for pattern, instead in PATTERNS:
            for match in pattern.finditer(value):
                line = text.line + value[: match.start()].count("\n")
                word = " ".join(match[0].split())
                found.append(Finding(name, line, word, near(value, *match.span()), instead))
    return sorted(found, key=lambda finding: finding.line)


def near(value: str, start: int, end: int) -> str:
    """Returns a match with up to 30 characters on each side, on one line."""
    return " ".join(value[max(0, start - 30) : end + 30].split())


def without_code(value: str) -> str:
    """Blanks code between backticks, and keeps line breaks and positions."""
    return re.sub(r"`[^`]*`", lambda code: re.sub(r"[^\n]", "-", code[0]), value)


def texts(path: Path) -> Iterator[Text]:
    """Yields the texts of a file that are written for people."""
    content = path.read_text()
    if path.suffix == ".py":
        yield from python_texts(content)
    elif path.suffix == ".md":
        yield Text(1, without_fences(content))
    elif path.suffix in (".j2", ".html"):
        yield Text(1, re.sub(r"<[^>]*>", lambda tag: re.sub(r"[^\n]", " ", tag[0]), content))
    else:
        yield Text(1, comments_only(content))


def python_texts(content: str) -> Iterator[Text]:
    """Yields comments, docstrings and string literals of more than one word."""
    previous = 0
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != previous + 1:
                yield Text(previous - len(block) + 1, "\n".join(block))
                block = []
            block.append(token.string.lstrip("# "))
            previous = token.start[0]
    if block:
        yield Text(previous - len(block) + 1, "\n".join(block))
    yield from strings(ast.parse(content))


def strings(node: ast.AST) -> Iterator[Text]:
    """Yields the docstrings and string literals below a node of a syntax tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            if isinstance(child.value.value, str):
                yield Text(child.lineno, child.value.value, is_docstring=True)
        elif isinstance(child, ast.JoinedStr):
            parts = [
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in child.values
            ]
            yield Text(child.lineno, "".join(parts))
            for part in child.values:
                if isinstance(part, ast.FormattedValue):
                    yield from strings(part)
        elif isinstance(child, ast.Constant):
            if isinstance(child.value, str) and " " in child.value.strip():
                yield Text(child.lineno, child.value)
        else:
            yield from strings(child)


def without_fences(content: str) -> str:
    """Blanks the code blocks of a Markdown page, except comments at the end of their lines."""
    lines, fenced = [], False
    for line in content.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            lines.append("")
        else:
            comment = re.search(r"(?:^|\s)#\s.*", line)
            lines.append(line if not fenced else comment[0] if comment else "")
    return "\n".join(lines)


def comments_only(content: str) -> str:
    """Keeps what follows a `#` at the start of a line or after white space."""
    found = [re.search(r"(?:^|\s)#\s?(.*)", line) for line in content.split("\n")]
    return "\n".join(match[1] if match else "" for match in found)


def files(paths: list[Path]) -> list[Path]:
    """Returns the files with texts in folders, and the files given."""
    found: set[Path] = set()
    for path in paths:
        inside = [path] if path.is_file() else path.rglob("*")
        found |= {file for file in inside if file.suffix in SUFFIXES or file.name == "Makefile"}
    hidden = re.compile(r"(?:^|/)(?:\.|__pycache__)")
    return sorted(
        path
        for path in found
        if (name := path.relative_to(ROOT).as_posix()) not in SKIPPED and not hidden.search(name)
    )


def main() -> None:
    """Prints the findings of the files and folders given; exits with 1 if there are any."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    found = [finding for path in files(paths) for finding in findings(path)]
    print(*found, f"{len(found)} findings", sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
