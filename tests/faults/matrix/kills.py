"""Faults of processes that end unexpectedly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from conf.errors import EXIT_FAILED
from pretrain.checkpoints import files
from tests.conftest import ROOT
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.lab import EVERY, PATIENCE, STEPS, Lab, check, drawn
from tests.faults.writer_faults import FAULT
from tests.patience import limit

KILLED = {-signal.SIGKILL}
PHASES = ("staged", "written", "hashed", "agreed", "manifest", "renamed", "latest", "pruned")
AGAIN = "the same command ends with the weights of an uninterrupted run"


@row(1, "a rank is killed at a random step", AGAIN, trials=20)
def killed_at_a_step(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(1, trial)
    ended = run.start(("SIGKILL", random.randrange(2), random.randint(1, STEPS)))
    return run.goes_on(check(ended, KILLED))


@row(2, "a rank is killed in its backward pass, or while the others all-reduce", AGAIN, trials=8)
def killed_inside(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(2, trial)
    fault = ("kill_in_backward", "kill_before_reduce")[trial % 2]
    ended = run.start((fault, random.randrange(2), random.randint(1, STEPS)))
    return run.goes_on(check(ended, KILLED))


@row(3, "the launcher and all ranks are killed", "no process remains; " + AGAIN, trials=3)
def killed_with_the_launcher(lab: Lab, trial: int) -> Outcome:
    run, step = lab.run(), drawn(3, trial).randint(2, STEPS - 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", *run.command(None, validation__every_steps=1)]
    launcher = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert launcher.stdout is not None
    for line in launcher.stdout:
        found = re.match(r"step (\d+)  validation", line)
        if found and int(found.group(1)) >= step:
            break
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait(limit(PATIENCE))
    deadline = time.monotonic() + limit(10)
    while left := _processes_of(run.dir):
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return Outcome(f"processes {left} are left", hang=True)
        time.sleep(0.05)
    return run.goes_on()


def _processes_of(run_dir: Path) -> list[int]:
    """Returns the processes whose command names the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run_dir).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@row(4, "killed in each phase of a save, or at a random moment during one", AGAIN, trials=26)
def killed_in_a_save(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(4, trial)
    if trial < 2 * len(PHASES):
        phase, step = PHASES[trial % len(PHASES)], EVERY * random.randint(2, STEPS // EVERY)
        step = STEPS if phase == "pruned" else step  # the first that removes one
        ended = run.start(environment={FAULT: f"kill:{phase}:{step}"})
    else:
        step = EVERY * random.randint(1, STEPS // EVERY - 1) + 1  # the first after a save
        delay = {"HEADWATER_FAULT_SECONDS": str(random.uniform(0, 0.25))}
        ended = run.start(("kill_soon", random.randrange(2), step), environment=delay)
    wrong = check(ended, KILLED)
    damaged = [path.name for path in files.checkpoints_in(run.checkpoints) if files.verify(path)]
    return run.goes_on(wrong or (f"{damaged} are listed and damaged" if damaged else ""))


@row(
    5,
    "killed after the folder was renamed and before `latest` is updated",
    "the newest complete checkpoint is found",
    trials=4,
)
def killed_before_latest(lab: Lab, trial: int) -> Outcome:
    run, step = lab.run(), EVERY * (2 + trial % 3)
    ended = run.start(environment={FAULT: f"kill:renamed:{step}"})
    wrong = check(ended, KILLED)
    if not wrong and step not in run.steps():
        wrong = f"step {step} was renamed and is not listed"
    reached = run.last_step()  # training continued while it was written
    outcome = run.goes_on(wrong)
    if not outcome.wrong and outcome.lost is not None and reached - outcome.lost < step:
        outcome.wrong = f"{outcome.lost} steps were lost, expected the checkpoint of step {step}"
    return outcome


@row(34, "a rank runs out of memory", "it ends and prints the cause; " + AGAIN, trials=3)
def out_of_memory(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(34, trial)
    ended = run.start(("no_memory", 0, random.randint(1, STEPS)))
    return run.goes_on(check(ended, {EXIT_FAILED}, "memory"))


@row(
    37, "the same step fails each time", "exit code 86 after the allowed number of starts", trials=2
)
def crash_loop(lab: Lab, trial: int) -> Outcome:
    run, codes = lab.run(), []
    for _ in range(4):
        ended = run.start(
            ("error", 0, 5 + trial),
            processes=1,
            checkpoint__asynchronous="false",
            health__restarts_at_most=1,
        )
        codes += ended.codes
    if codes != [1, 1, 1, 86] or "without reaching its next checkpoint" not in ended.said:
        return Outcome(f"ended with {codes}: {ended.said[-200:]}")
    (run.dir / "restarts.json").unlink()
    return run.goes_on(processes=1, checkpoint__asynchronous="false")
