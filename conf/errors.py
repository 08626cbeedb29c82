"""Bad input and the exit codes of every command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
"""Something broke that is not the user's input; the traceback is printed."""
EXIT_BAD_INPUT = 2
"""A key, file or combination of settings is wrong; one sentence says which."""
EXIT_CHECKPOINT = 65
"""No checkpoint can be read, or none can be written: a person has to look (EX_DATAERR)."""
EXIT_STORAGE = 75
"""Remote storage did not answer in time, retries included: the same command may work later
(EX_TEMPFAIL of sysexits.h, so that a scheduler can requeue)."""
EXIT_REQUEUE = 85
"""Stopped when asked to, at a step border and with a checkpoint: the same command goes on."""
EXIT_GAVE_UP = 86
"""Trying again will not help: the same fault came back without progress."""
EXIT_HANG = 87
"""A rank did not come: the same command goes on from the last checkpoint."""
EXIT_CORRUPT = 88
"""Numbers that must be equal are not: a machine computes or remembers wrongly."""


class InputError(Exception):
    """Bad input: the message is one sentence that names the key or file, what was found,
    what was expected and what to do. Commands print it without a traceback and exit with
    `exit_code`; whoever raises it has left nothing half-written behind.

    every_rank: each process that meets it says so; otherwise all meet it and rank 0 speaks.
    """

    exit_code = EXIT_BAD_INPUT
    every_rank = False


class RunFault(InputError):
    """A run that cannot go on for a reason that is known: one sentence and an exit code, too."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` where a close name exists, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(found, names, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(names)})" if names else ""


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises InputError unless value is one of choices."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{key}={value} is not a choice{did_you_mean(value, choices)}.")
