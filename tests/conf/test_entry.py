"""Every choice composes against its schema; the packages keep their import contract."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from conf.entry import CONF_DIR, _help
from conf.errors import did_you_mean
from tests.conftest import ROOT
from tests.patience import limit

STAGES = ("data_pipeline", "model", "pretrain", "finetune", "eval", "launch")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself(stage, command):
    done = command(stage, "--help")
    assert done.returncode == 0
    assert f"python -m {stage}" in done.stdout


@pytest.mark.parametrize("recipe", sorted(p.stem for p in (CONF_DIR / "recipe").glob("*.yaml")))
def test_every_recipe_composes(recipe, command):
    done = command("pretrain", f"recipe={recipe}", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert f"name: {recipe}" in done.stdout


@pytest.mark.parametrize("group", ["optim", "logger", "parallel"])
def test_every_choice_of_a_group_composes(group, command):
    for path in (CONF_DIR / group).glob("*.yaml"):
        done = command("pretrain", f"{group}={path.stem}", "--cfg", "job")
        assert done.returncode == 0, (path, done.stderr)


def test_a_stage_of_one_s_own_is_added_on_the_command_line(command):
    done = command("pretrain", "+recipe.stages.more.tokens=1_000", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "\n    more:\n" in done.stdout


def test_a_plain_key_may_have_the_name_of_a_group_of_other_commands(command):
    done = command("eval", "chat", "model=runs/demo/export", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "model: runs/demo/export" in done.stdout


def test_did_you_mean():
    assert did_you_mean("cosin", ["cosine", "linear"]) == " (did you mean 'cosine'?)"
    assert did_you_mean("x", ["b", "a"]) == " (known: a, b)"
    assert did_you_mean("x", []) == ""


def test_imports_keep_the_contract():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, timeout=limit(120))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["local", "slurm", "chain", "status", "stop", "plan"])
def test_a_command_s_help_has_an_example_and_explains_each_key(name, command):
    from launch.__main__ import COMMANDS

    module, _, schema = COMMANDS[name].schema.partition(":")
    done = command("launch", name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"    python -m launch {name} " in done.stdout
    explained, _, config = done.stdout.partition("The config, ")
    for key in get_type_hints(getattr(importlib.import_module(module), schema)):
        assert re.search(rf"\b{key}\b[^.]*?[:=]", explained), key
        assert f"\n{key}:" in config


@pytest.mark.parametrize(("name", "listed"), [("finetune", False), ("launch", True)])
def test_choices_are_listed_for_keys_that_take_them(name, listed):
    """`model` of finetune is a folder, and `cluster` of `launch slurm` is a file in conf/."""
    commands = importlib.import_module(f"{name}.__main__").COMMANDS
    command, key = ("slurm", "cluster=") if listed else ("show", "model=")
    lines = _help(name, command, commands[command]).split("Choices (files in conf/):")[1]
    assert any(line.startswith(f"  {key}") for line in lines.splitlines()) == listed
