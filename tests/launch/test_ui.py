"""The page: the commands it runs, and a run from its buttons to its curve in a browser."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from launch.ui import commands
from launch.ui.commands import BackgroundCommands, Form
from launch.ui.serve import UiConfig
from tests import browser
from tests.conftest import ROOT
from tests.patience import limit
from tests.ports import free_port
from tests.runs import arguments


def form(folder, **changes):
    chosen: dict[str, Any] = {"name": "mine", "model": "demo_12m", "recipe": "demo"}
    chosen |= {
        "optim": "adamw_demo",
        "data": "data/web",
        "processes": 2,
        "cluster": "h100",
        "runs": folder,
    }
    return Form(**(chosen | changes))


def test_the_commands_are_those_of_the_terminal(tmp_path):
    made = form(tmp_path, more="seed=3 'recipe.stages.short.tokens=8192'")
    run = ["model=demo_12m", "recipe=demo", "optim=adamw_demo"]
    assert made.train() == [
        *("launch", "local", "nproc=2", "--", *run, "data.folder=data/web", "name=mine"),
        *(f"run_dir={tmp_path}/mine", "seed=3", "recipe.stages.short.tokens=8192"),
    ]
    where = ["cluster=h100", f"out={tmp_path}/mine.plan.html", "overwrite=true"]
    assert made.plan() == ["launch", "plan", *where, *made.train()[3:]]  # of the same run
    assert commands.shell_form(["eval", "chat", "model=a b"]) == "python -m eval chat 'model=a b'"
    assert commands.choices("recipe")[0] == "continued"
    assert commands.tokenize("web", "bpe_8k", "seed=3") == [
        *("data_pipeline", "tokenize", "corpus=web", "tokenizer=bpe_8k", "out=data/web", "seed=3")
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../other"}, r"name='../other': not a valid name of a run folder"),
        ({"data": ""}, r"no corpus is chosen\. Choose one, or make"),
        ({"more": "seed='1"}, r"more overrides: .*No closing quotation"),
    ],
)
def test_what_is_refused(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        form(tmp_path, **changes).overrides()


def test_settings_are_checked():
    with pytest.raises(InputError, match="port=0: expected 1 to 65533"):
        UiConfig(port=0)


def test_what_a_command_refuses_is_said(command):
    with pytest.raises(InputError, match="run=nowhere"):
        commands.run_now(commands.stop("nowhere"))


def test_one_at_a_time_and_ended(tmp_path):
    started = BackgroundCommands()
    sleeper = ["http.server", "--bind", "127.0.0.1", "0"]
    started.start("chat", sleeper, tmp_path / "log")
    with pytest.raises(InputError, match=r"chat is already running\. Stop it first"):
        started.start("chat", sleeper, tmp_path / "log")
    started.end("chat")
    assert not started.runs("chat")


def test_curves_of_a_run_that_is_being_written(tmp_path):
    lines = [
        {"kind": "validation", "step": 0, "loss": 5.0},
        {"kind": "event", "step": 0, "event": "start"},
        {"kind": "train", "step": 1, "loss": 4.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"ki')
    assert commands.loss_curves(tmp_path) == {
        "step": [0, 1],
        "loss": [5.0, 4.0],
        "series": ["held out", "training"],
    }


SHOWN = (
    "[...document.querySelectorAll('.command-output textarea')].some(t => t.value.includes('{}'))"
)
CLICK = "[...document.querySelectorAll({})].find(b => b.innerText.trim() == {}).click()"


def click(page, words, kind):
    page.js(CLICK.format(json.dumps(kind), json.dumps(words)))


def fill(page, label, text):
    """Sets a field, as typing does."""
    page.js(
        f"""(() => {{
        const field = [...document.querySelectorAll('label')].find(
            l => l.innerText.trim() == {json.dumps(label)}).querySelector('input, textarea');
        const proto = field.tagName == 'INPUT' ? HTMLInputElement : HTMLTextAreaElement;
        Object.getOwnPropertyDescriptor(proto.prototype, 'value').set.call(
            field, {json.dumps(text)});
        field.dispatchEvent(new Event('input', {{bubbles: true}}));
        }})()"""
    )


@pytest.fixture
def address(tmp_path, corpus):
    """The page, whose folder of runs is empty."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bytes").symlink_to(corpus.folder)
    with served(tmp_path) as address:
        yield address


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page, started in a folder."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra chat)")
    port = free_port()
    log = folder / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "launch", "ui", f"port={port}"],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            end = time.monotonic() + limit(120)
            while "page: " not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(limit(30)) == 0, log.read_text()


def test_a_run_from_its_button_to_its_curve(address, tmp_path, corpus):
    # The test's model and recipe are smaller than any of conf/.
    taken = ("data.folder=", "run_dir=", "pretrain", "model=", "recipe=", "optim=", "name=")
    given = arguments(corpus.folder, tmp_path / "unused")
    more = shlex.join(part for part in given if not part.startswith(taken))
    with browser.page(120) as page:
        page.open(address, 390, 800)
        page.wait("document.body.innerText.includes('Headwater')")
        page.wait(SHOWN.format("launch local"))
        assert page.js("document.documentElement.scrollWidth") <= 390
        page.open(address, 1280, 900)
        page.wait(SHOWN.format("launch local"))
        fill(page, "name of the run", "mine")
        fill(page, "more overrides", more)
        page.wait(SHOWN.format("logger=files"))
        click(page, "Train", "button.primary")
        page.wait("document.body.innerText.includes('runs/mine is training')")
        click(page, "Watch", "[role=tab]")
        page.wait("document.body.innerText.includes('finished')")
        page.wait("document.querySelectorAll('svg .mark-line path, canvas').length > 0")
    run = Path(tmp_path, "runs", "mine")
    assert json.loads((run / "outcome.json").read_text())["code"] == 0
    assert "step 20/20" in (run / "ui.log").read_text()


@pytest.mark.slow
def test_a_newcomer_begins_with_data(tmp_path):
    """With no corpus the page opens where one is made, and that one can then be trained on."""
    more = "tokenizer.vocab_size=500 corpus.sources.prose.max_bytes=300_000 "
    more += "corpus.sources.code.max_bytes=600_000"
    with served(tmp_path) as address, browser.page(120) as page:
        page.open(address, 390, 800)
        page.wait(SHOWN.format("data_pipeline tokenize corpus=python_docs"))
        assert page.js("document.documentElement.scrollWidth") <= 390
        page.open(address, 1280, 900)
        page.wait(SHOWN.format("data_pipeline tokenize corpus=python_docs"))
        fill(page, "more overrides of the text", more)
        page.wait(SHOWN.format("code.max_bytes"))
        click(page, "Tokenize", "button.primary")
        page.wait(SHOWN.format("made data/python_docs"))
        click(page, "Train", "[role=tab]")
        page.wait(SHOWN.format("data.folder=data/python_docs"))
