"""Faults of starts: other places, other settings, other times."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from statistics import median
from typing import Any

from conf.errors import EXIT_BAD_INPUT
from pretrain.health.run_lock import RunLock
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.kills import AGAIN
from tests.faults.matrix.lab import STEPS, Lab, check
from tests.pretrain.test_bad_input import CASES
from tests.runs import ledger, records

BAD_INPUT = list(CASES.items())


@row(
    28, "resumed on another number of processes, or with other micro-batches", "the same tokens", 6
)
def other_world(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    first, then = ((1, 2), (2, 1), (4, 2), (2, 4), (2, 2), (1, 1))[trial]
    changes: dict[str, Any] = {"parallel__micro_batch_tokens": 256} if trial > 3 else {}
    wrong = check(run.start(processes=first, stop_after=8), {0})
    wrong = wrong or check(run.start(processes=then, **changes), {0}, "resuming after step 6")
    if wrong:
        return Outcome(wrong)
    if ledger(run.dir) != ledger(lab.whole().dir):
        return Outcome("other tokens", wrong_resume=True)
    ours, theirs = ([r["loss"] for r in records(r.dir)] for r in (run, lab.whole()))
    apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return Outcome(f"losses differ by {apart:.1g}" if apart > 2e-6 else "")


@row(
    29,
    "resumed with other settings",
    "exit code 2 with the old and new value, unless it is allowed",
    trials=5,
)
def other_settings(lab: Lab, trial: int) -> Outcome:
    run = lab.stopped()
    cases: list[tuple[str, Any, str]] = [
        ("optim__learning_rate", 0.02, "optim.learning_rate was 0.01, now 0.02"),
        ("model__num_layers", 3, "num_layers"),
        ("seed", 7, "The seed or the recipe has changed"),
        ("precision", "bf16", "precision was fp32, now bf16"),
        ("recipe__stages__short__mixture__code", 0.1, "The seed or the recipe has changed"),
    ]
    key, value, said = cases[trial]
    before = (run.dir / "metrics.jsonl").read_bytes()
    wrong = check(run.start(**{key: value}), {EXIT_BAD_INPUT}, said)
    if not wrong and (run.dir / "metrics.jsonl").read_bytes() != before:
        wrong = "the run folder was changed"
    return run.goes_on(wrong)


@row(30, "wrong settings", "exit code 2, one sentence, nothing is written", trials=len(BAD_INPUT))
def bad_settings(lab: Lab, trial: int) -> Outcome:
    _, (changes, said) = BAD_INPUT[trial]
    run = lab.run()
    wrong = check(run.start(processes=1, **changes), {EXIT_BAD_INPUT}, "error: ", said)
    return Outcome(wrong or ("something was written" if run.dir.exists() else ""))


@row(31, "the clock jumps by a day, forward or back", AGAIN, trials=4)
def clock(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    fault = ("clock_ahead", "clock_back")[trial % 2]
    wrong = check(run.start((fault, "all", 3 + trial), stop_after=8), {0})
    return run.goes_on(wrong)


@row(
    32,
    "a second job in the same folder",
    "exit code 2 with host and pid; the first job continues",
    trials=2,
)
def second_job(lab: Lab, trial: int) -> Outcome:
    run = lab.stopped()
    lock = RunLock(run.dir)
    try:
        wrong = check(run.start(processes=1 + trial), {EXIT_BAD_INPUT}, f"pid {os.getpid()}")
    finally:
        lock.release()
    return run.goes_on(wrong)


@row(33, "wandb does not answer", "no step takes longer", trials=2)
def wandb_away(lab: Lab, trial: int) -> Outcome:
    seconds = {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if trial == 0 else 9
        away = {
            "WANDB_API_KEY": "0" * 40,
            "WANDB_INIT_TIMEOUT": "3",
            "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        }
        for logger in ("files", "wandb"):
            run = lab.run()
            wrong = check(run.start(environment=away, logger=logger), {0})
            if wrong:
                return Outcome(wrong)
            seconds[logger] = [record["step_seconds"] for record in records(run.dir)][1:]
    if max(seconds["wandb"]) > 2 or median(seconds["wandb"]) > 3 * median(seconds["files"]):
        return Outcome(f"steps took {seconds}")
    return Outcome(run.differs(lab.whole()))


@row(38, "another version of a package when resuming", "a warning with both versions", trials=2)
def other_version(lab: Lab, trial: int) -> Outcome:
    run = lab.stopped()
    env = json.loads((run.dir / "env.json").read_text())
    package = ("torch", "numpy")[trial]
    env["packages"][package] = "0.0.1"
    (run.dir / "env.json").write_text(json.dumps(env))
    ended = run.start(stop_after=9)
    return run.goes_on(check(ended, {0}, f"warning: packages.{package} was 0.0.1"))


@row(40, "the home folder or /dev/shm is not writable", "it works, or prints why not", trials=2)
def poor_machine(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    script = ("HOME=/proc %s", "umount -l /dev/shm; mount -t tmpfs -o ro none /dev/shm; %s")[trial]
    try:
        done = run.alone(script)
    except subprocess.TimeoutExpired:
        return Outcome("hung", hang=True)
    if done.returncode and "error: " not in done.stderr:
        return Outcome(f"ended with {done.returncode}: {done.stderr[-300:]}")
    if done.returncode == 0:
        return Outcome("" if run.last_step() == STEPS else "not all steps")
    shutil.rmtree(run.dir, ignore_errors=True)
    return Outcome()
