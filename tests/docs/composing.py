"""Composes commands in this process by their own `__main__` and `conf.entry.main`.

The settings with which they would run are recorded instead of running them.
"""

from __future__ import annotations

import io
import logging
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from logging import Logger
from typing import Any

from conf import entry
from conf.entry import Command
from conf.errors import InputError
from launch import training

STAGES = ("data_pipeline", "model", "pretrain", "finetune", "eval", "launch")
kept: list[Any] = []


def keep(settings: Any) -> None:
    """Records the settings, in place of a command's function."""
    kept.append(settings)


def composed(stage: str, arguments: list[str]) -> list[Any]:
    """Returns the settings with which `python -m stage arguments` would run.

    There are several in a sweep, and none for `--help` and `--cfg`. Raises InputError with the
    command's own sentence.
    """
    kept.clear()
    said(stage, arguments)
    return list(kept)


def said(stage: str, arguments: list[str]) -> str:
    """Returns what the command prints while it is composed. Raises InputError."""
    real = entry.main
    keeping = f"{__name__}:keep"

    def main(stage: str, commands: Mapping[str, Command], default: str | None = None) -> None:
        real(stage, {key: replace(c, run=keeping) for key, c in commands.items()}, default)

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    entry.main = main
    sys.argv = [f"python -m {stage}", *arguments]
    training.overrides.clear()
    # Hydra disables the loggers that exist: in a process of its own none of another test does.
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, Logger)]
    enabled = [one for one in loggers if not one.disabled]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_module(stage, run_name="__main__")
    except SystemExit as end:
        if end.code:
            sentence = (err.getvalue().strip() or out.getvalue().strip()).split("\n")[-1]
            raise InputError(sentence.removeprefix("error: ")) from None
    finally:
        entry.main, sys.argv = real, argv
        for one in enabled:
            one.disabled = False
    return out.getvalue()


@contextmanager
def answering_here() -> Iterator[list[Any]]:
    """Lets `launch` compose the commands that it queues in this process.

    Yields a list that receives the settings with which they would run.
    """
    real_answer, real_compose = training.answer, training.compose_command_line
    met: list[Any] = []

    def answer(command: list[str], timeout_seconds: float | None = None) -> str:
        before = list(training.overrides)
        try:
            return said(command[0], command[1:])
        finally:
            training.overrides[:] = before

    def compose_command_line(words: list[str]) -> Any:
        met.append(real_compose(words))
        return met[-1]

    training.answer, training.compose_command_line = answer, compose_command_line
    try:
        yield met
    finally:
        training.answer, training.compose_command_line = real_answer, real_compose
