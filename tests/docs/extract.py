"""Finds the command lines of a page: those of fenced blocks, and code in prose and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass

TOOLS = ("python", "python3", "torchrun", "make", "pip", "sbatch", "scontrol", "git")
FIRST_WORD = re.compile(rf"(?:{'|'.join(TOOLS)})\s+\S")
INLINE = re.compile(r"`([^`\n]+)`")
ANY = re.compile(
    r"\bpython3? (?:-m \S|\S+\.py)|\btorchrun -|\bmake [a-z]+(?=[`\s])|\bpip install|\bsbatch -"
    r"|\bscontrol [a-z]+ "
)
"""Matches what looks like a command in any place, independent of the rules of this file."""
PROSE = re.compile(r"\bmake (?!demo|test|check|faults|bench|peers|lint|install|clean)")


@dataclass(frozen=True)
class CommandLine:
    """A command of a page.

    Attributes:
        line: The line where it begins.
        start: Its position in the text.
        end: The position after it.
        inline: True if it is in a sentence or a table.
    """

    page: str
    line: int
    text: str
    start: int
    end: int
    inline: bool = False

    @property
    def where(self) -> str:
        """Page and line, in the form that editors open."""
        return f"{self.page}:{self.line}"


def command_lines(page: str, text: str) -> list[CommandLine]:
    """Returns the commands of a Markdown page, in their order."""
    found: list[CommandLine] = []
    fenced, start = False, 0
    lines = text.splitlines(keepends=True)
    number = 0
    while number < len(lines):
        line, begin, first = lines[number], start, number + 1
        number, start = number + 1, start + len(line)
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced and FIRST_WORD.match(line.lstrip()):
            whole = line
            while whole.rstrip("\n").endswith("\\") and number < len(lines):
                whole += lines[number]
                number, start = number + 1, start + len(lines[number])
            found.append(CommandLine(page, first, whole.strip(), begin, start))
        elif not fenced:
            for code in INLINE.finditer(line):
                if FIRST_WORD.match(code[1]):
                    place = begin + code.start(1), begin + code.end(1)
                    found.append(CommandLine(page, first, code[1], *place, inline=True))
    return found


def header_lines(page: str, text: str) -> list[CommandLine]:
    """Returns the examples that `--help` shows from the comment at the head of a YAML file.

    They are its indented lines.
    """
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line[1:].removeprefix(" "))
    block = "".join(f"{line}\n" for line in comment)
    fenced = "".join(
        f"{line.strip()}\n" if line.startswith("    ") else "\n" for line in block.splitlines()
    )
    return command_lines(page, f"```\n{fenced}```\n")


def strays(text: str, found: list[CommandLine]) -> list[str]:
    """Returns what looks like a command and is not part of one that was found."""
    missed = []
    for match in ANY.finditer(text):
        if PROSE.match(text, match.start()):
            continue
        if not any(command.start <= match.start() < command.end for command in found):
            line = text.count("\n", 0, match.start()) + 1
            words = text[match.start() : match.start() + 60].splitlines()[0]
            missed.append(f"line {line}: {words}")
    return missed
