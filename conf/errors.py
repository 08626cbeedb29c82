"""Errors that end a command with one sentence, and the exit codes of every command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
"""Something other than the user's input failed; the traceback is printed."""
EXIT_BAD_INPUT = 2
"""A key, a file or a combination of settings is wrong; one sentence names it."""
EXIT_CHECKPOINT = 65
"""No checkpoint can be read or written, which needs manual attention (EX_DATAERR of sysexits.h)."""
EXIT_STORAGE = 75
"""Remote storage did not answer in time despite retries; the same command may work later
(EX_TEMPFAIL of sysexits.h, so that a scheduler can requeue)."""
EXIT_REQUEUE = 85
"""The run was asked to stop and wrote a checkpoint; the same command resumes it."""
EXIT_GAVE_UP = 86
"""The same fault recurred without progress in between, so another retry will not help."""
EXIT_HANG = 87
"""A rank hung or timed out; the same command resumes from the last checkpoint."""
EXIT_CORRUPT = 88
"""Replicas or a replayed step disagree: likely silent data corruption."""


class InputError(Exception):
    """Bad input, reported as one sentence that names the key or file, the fault and the remedy.

    Commands print the message without a traceback and exit with `exit_code`. They leave no partial
    output on disk.

    Attributes:
        every_rank: True if each rank that raises the error prints it; False if all ranks raise
            the same error and only rank 0 prints it.
    """

    exit_code = EXIT_BAD_INPUT
    every_rank = False


class RunAborted(InputError):
    """An expected end of a run: a one-line message and an exit code, without a traceback."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` if there is a similar name, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(found, names, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(names)})" if names else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message without its final period, or else its type."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{key}={value}: unknown choice{did_you_mean(value, choices)}.")
