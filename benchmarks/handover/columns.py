"""The columns of the table: tools, and how each of them is asked what it finds in the cases.

A further tool is one more entry of COLUMNS. It returns its version, and the findings by family in
the form of `compare.cells`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.handover.cases import Case, as_json

Found = tuple[str, dict[str, dict[str, Any]]]
HERE = Path(__file__).parent


class NotHereError(Exception):
    """Error of a column whose tool is not installed on this machine."""


def probe(script: str, python: str | None, option: str) -> Callable[[list[Case]], Found]:
    """Returns a column that runs a probe in the environment of a Python."""

    def ask(cases: list[Case]) -> Found:
        if python is None:
            raise NotHereError(f"give {option}")
        done = subprocess.run(
            [python, str(HERE / script)], input=as_json(cases), capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{python} {script} failed:\n{done.stderr[-3000:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        return said["version"], said["families"]

    return ask


def llamacpp(cases: list[Case]) -> Found:
    """Returns what llama.cpp finds in the GGUF file of each case."""
    try:
        from benchmarks.handover.llamacpp import find
    except ImportError as error:
        raise NotHereError(f"{error.name} is not installed") from None
    return find(cases)


def columns(options: argparse.Namespace) -> dict[str, Callable[[list[Case]], Found]]:
    """Returns the function of each column by its name in the table."""
    transformers = "probe_transformers.py"
    return {
        "transformers 4": probe(transformers, options.older, "--older"),
        "transformers 5": probe(transformers, sys.executable, ""),
        "vLLM": probe("probe_vllm.py", options.vllm, "--vllm"),
        "llama.cpp": llamacpp,
    }
