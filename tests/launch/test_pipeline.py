"""A chain of commands continues where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError
from launch.pipeline import Pipeline, PipelineConfig, StepConfig, StepFailed, arguments


def write(path: Path, text: str = "x") -> str:
    """A command of the standard library's that makes a file: python -m timeit."""
    return f"timeit -n1 -r1 \"open('{path}', 'a').write('{text}')\""


@pytest.fixture
def config(tmp_path):
    steps = {
        name: StepConfig(title=name, command=write(tmp_path / name), makes=str(tmp_path / name))
        for name in ("a", "b", "c")
    }
    return PipelineConfig(name="p", out=str(tmp_path / "out"), data="", steps=steps)


def run(config):
    return [(o.name, o.skipped) for o in Pipeline(config).run(lambda name, line: None)]


def test_it_runs_every_step_once(config):
    assert run(config) == [("a", False), ("b", False), ("c", False)]
    assert run(config) == [("a", True), ("b", True), ("c", True)]
    assert (Path(config.out) / "logs" / "a.log").read_text().startswith("1 loop")


def test_what_is_missing_is_made_again(config):
    run(config)
    Path(config.steps["b"].makes).unlink()
    assert run(config) == [("a", True), ("b", False), ("c", True)]


def test_a_changed_step_runs_again_with_all_after_it(config, tmp_path):
    run(config)
    config.steps["b"].command = write(tmp_path / "b", "changed")
    assert run(config) == [("a", True), ("b", False), ("c", False)]


def test_a_failed_step_stops_the_chain_and_is_tried_again(config, tmp_path):
    good, config.steps["b"].command = config.steps["b"].command, "timeit -n1 -r1 1/0"
    with pytest.raises(StepFailed, match=r"step 'b' ended with code 1.*(\n.*)*ZeroDivisionError"):
        run(config)
    assert not (tmp_path / "c").exists()
    config.steps["b"].command = good
    assert run(config) == [("a", True), ("b", False), ("c", False)]


def test_a_step_that_makes_nothing_has_failed(config):
    config.steps["a"].command = "timeit -n1 -r1 pass"
    with pytest.raises(StepFailed, match="The step did not make"):
        run(config)


def test_no_steps_are_refused(tmp_path):
    with pytest.raises(InputError, match="steps is empty"):
        Pipeline(PipelineConfig(name="p", out=str(tmp_path), data=""))


def test_torchrun_is_used_for_several_processes():
    step = StepConfig(title="t", command="pretrain name='a b'", makes="m", processes=2)
    assert arguments(step)[3:] == [
        "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretrain",
        "name=a b",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_command_of_the_demo_composes():
    """Each is what a person could type: its stage accepts it with --cfg job."""
    demo = OmegaConf.load(CONF_DIR / "command" / "demo.yaml")
    for name, step in demo.steps.items():
        stage, *rest = step.command.split()
        done = subprocess.run(
            [sys.executable, "-m", stage, *rest, "--cfg", "job"], capture_output=True, text=True
        )
        assert done.returncode == 0, (name, done.stderr)
