"""An engine and its processes end with `eval serve`, at any moment and however that ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.ports import free_port

ENGINE = Path(__file__).with_name("stand_in_engine.py")
IMPATIENT = "import sys; import eval.chat.guard as g; g.PATIENCE = 0.1; sys.exit(g.main())"
DEAF = [sys.executable, "-c", IMPATIENT, sys.executable, str(ENGINE), "--deaf"]
"""The guard of a stand-in whose processes ignore SIGTERM."""


@contextmanager
def started(
    tmp_path: Path, command: list[str], phase: str, **more: Any
) -> Iterator[tuple[subprocess.Popen[str], TextIOWrapper, dict[str, Any]]]:
    """Yields a process, the FIFO of its stand-in, and what that said once all of it runs."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    environment = os.environ | {"STAND_IN_FIFO": str(fifo), "STAND_IN_PHASE": phase}
    environment |= more.pop("env", {})
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **more)
    try:
        with fifo.open() as said:
            about = json.loads(said.readline())
            assert said.readline() == "ready\n"
            yield process, said, about
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("end", ["SIGTERM", "closed input"])
def test_the_guard_ends_every_process(tmp_path, end):
    """The server ignores SIGTERM, as vLLM does while it compiles; its processes do so, too."""
    with started(tmp_path, DEAF, "starting", stdin=subprocess.PIPE) as (process, said, _):
        if end == "SIGTERM":
            process.terminate()
        else:
            assert process.stdin is not None
            process.stdin.close()
        assert said.read() == ""  # no process holds the FIFO any more
        assert process.wait() == -signal.SIGKILL % 256


def test_a_server_that_exits_leaves_nothing_behind(tmp_path):
    """The guard has the exit code of its server, once the server's processes have ended."""
    with started(tmp_path, DEAF, "ending", stdin=subprocess.PIPE) as (process, said, _):
        assert said.read() == ""
        assert process.wait() == 3


@pytest.fixture
def serving(tmp_path: Path, chat_model: Path) -> tuple[list[str], dict[str, str]]:
    """The command that serves with the stand-in as engine, and its environment."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {shlex.quote(str(ENGINE))} "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, "-m", "eval", "serve", "engine=vllm", f"model={chat_model}"]
    settings = ["page=false", f"api_port={free_port()}", "api_key=secret", "dtype=float32"]
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return [*command, *settings, "engine_args=[--enforce-eager]"], environment


@pytest.mark.parametrize(
    ("phase", "number"), [("starting", signal.SIGKILL), ("serving", signal.SIGTERM)]
)
def test_no_process_outlives_serve(serving, tmp_path, phase, number):
    command, environment = serving
    pipes = {"stdout": subprocess.PIPE, "env": environment}
    with started(tmp_path, command, phase, **pipes) as (process, said, about):
        if phase == "serving":
            assert process.stdout is not None
            assert process.stdout.readline().startswith("endpoint: http://localhost:")
        process.send_signal(number)
        assert said.read() == ""
        assert process.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert about["key"] == "secret"  # in the environment, where other users cannot read it
    assert "secret" not in about["arguments"]
    arguments = about["arguments"]
    assert arguments[-1] == "--enforce-eager"
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
