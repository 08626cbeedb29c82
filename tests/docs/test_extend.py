"""The examples of docs/extend.md work: added to a copy of the project, they train and export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.patience import limit
from tests.runs import arguments, records

PAGE = ROOT / "docs/extend.md"
FOLDERS = ("conf", "data_pipeline", "eval", "model", "pages", "pretrain")


class Block(NamedTuple):
    """A code block of the page: the file and the place that its first line names, and its text."""

    path: str
    place: str
    text: str


def blocks() -> Iterator[Block]:
    """Yields the code blocks whose first line is a comment with a path."""
    pattern = r"^```\w+\n# ([\w/.]+\.\w+)(?:, (?:in )?(\w+))?\n(.*?)^```$"
    for path, place, text in re.findall(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL):
        yield Block(path, place, text)


def insert(source: str, block: Block) -> str:
    """Adds imports to the others of a file, and further lines to the start of a list or dict."""
    lines = block.text.splitlines(keepends=True)
    imports = "".join(line for line in lines if line.startswith("from "))
    entries = "".join(line for line in lines if not line.startswith("from "))
    future = "from __future__ import annotations\n"
    source = source.replace(future, f"{future}\n{imports}", 1)
    start = re.search(rf"^ *{block.place}\b[^\n]*[\[{{]\n", source, re.MULTILINE)
    assert start, f"{block.path} has no {block.place}"
    return source[: start.end()] + entries + source[start.end() :]


def run(folder: Path, *command: object) -> None:
    """Runs a command of the copied project."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit(120),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with every example of the page added."""
    folder = tmp_path_factory.mktemp("extended")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for block in blocks():
        path = folder / block.path
        if not block.place:
            assert not path.exists(), f"{block.path} exists already: choose another example"
            path.write_text(block.text)
        elif block.place != "excerpt":
            path.write_text(insert(path.read_text(), block))
    return folder


def test_the_page_has_examples_of_every_seam():
    new = [block.path for block in blocks() if not block.place]
    for folder in ("pretrain/optim", "pretrain/objectives", "pretrain/hooks", "model/families"):
        assert any(path.startswith(folder) for path in new), folder


@pytest.mark.parametrize("block", [block for block in blocks() if block.place == "excerpt"])
def test_an_excerpt_is_in_its_file(block):
    source = (ROOT / block.path).read_text()
    for line in block.text.splitlines(keepends=True):
        assert line in source, f"docs/extend.md: {block.path} has no line {line!r}"


@pytest.mark.slow
def test_a_run_uses_all_examples(project, corpus):
    changes = {
        "model__architecture": "ministral",
        "model__window_pattern": "LG",
        "optim": "lion",
        "optim__learning_rate": 0.001,
        "objective": "log_z_cap",
        "objective__limit": 0.5,
        "logger": "[files,csv]",
    }
    trained = project / "run"
    run(project, *arguments(corpus.folder, trained, **changes))

    steps = records(trained)
    assert all(step["log_z_cap"] > 0 for step in steps)
    losses = [validation["loss"] for validation in records(trained, "validation")]
    assert losses[-1] < losses[0] - 0.1

    lines = (trained / "loss.csv").read_text().splitlines()
    assert lines == [f"{step['step']},{step['loss']}" for step in steps]

    manifest = json.loads((trained / "checkpoints/step_20/manifest.json").read_text())
    assert manifest["hooks"]["EarlyStop"]["best"] == pytest.approx(min(losses))

    for step in (0, 20):
        given = [f"run={trained}", f"step={step}", f"out={step}", "dtype=float32"]
        run(project, "pretrain", "export", *given)
    first, last = (load_file(project / str(step) / "model.safetensors") for step in (0, 20))
    frozen = [name for name in first if first[name].equal(last[name])]
    assert frozen == ["model.embed_tokens.weight"]

    config = json.loads((project / "20/config.json").read_text())
    assert config["architectures"] == ["MinistralForCausalLM"]
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    score = project / "perplexity.json"
    given = [f"model={project / '20'}", f"data={corpus.folder}", "seq_len=128", "tokens=2048"]
    run(project, "eval", "perplexity", *given, "dtype=float32", f"out={score}")
    assert json.loads(score.read_text())["loss"] == pytest.approx(losses[-1], abs=1e-4)
