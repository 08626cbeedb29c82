"""Faults of checkpoints and their disks."""

from __future__ import annotations

import json
import os
import pickle
import signal

from conf.errors import EXIT_BAD_INPUT, EXIT_CHECKPOINT, EXIT_REQUEUE
from pretrain.checkpoints import files
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.kills import AGAIN, KILLED
from tests.faults.matrix.lab import EVERY, STEPS, Lab, Run, check, drawn
from tests.faults.writer_faults import FAULT
from tests.runs import records

OLDER = "it is renamed, and an older one is used; " + AGAIN


@row(6, "the disk is full during a save", "an alarm; training continues; the next save succeeds", 3)
def full_disk(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    run.checkpoints.mkdir(parents=True)
    other = run.checkpoints / "other"
    script = (
        f"mount -t tmpfs -o size=7m none {run.checkpoints}; "
        f"dd if=/dev/zero of={other} bs=1M count=6 2>/dev/null; "
        f'%s 2>&1 | while read -r line; do echo "$line"; '
        f"case $line in *ALARM*) rm -f {other};; esac; done; "
        f"cp -r {run.checkpoints} {run.dir}/kept"
    )
    changes = {"checkpoint__asynchronous": "false", "checkpoint__keep_last": 1}
    done = run.alone(script, **changes)
    if "unshare" in done.stderr:
        return Outcome(skipped=f"no mount of its own here: {done.stderr.strip()[:80]}")
    wrong = "" if f"ALARM: the checkpoint of step {EVERY} was not saved" in done.stdout else "alarm"
    if len(records(run.dir)) != STEPS:
        wrong = f"trained {len(records(run.dir))} steps"
    kept = run.dir / "kept"
    if files.verify(kept / f"step_{STEPS}") or list(kept.glob("*.tmp*")):
        wrong = "the last checkpoint is not whole, or something was left"
    return Outcome(wrong)


@row(
    7,
    "the disk is full when metrics and ledger are written",
    "an alarm; no record is lost",
    trials=2,
)
def full_disk_of_lines(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    ended = run.start(("no_room_for_lines", 0, 4 + trial))
    wrong = check(ended, {0}, "ALARM: ", "No space left on device")
    return Outcome(wrong or run.differs(lab.whole()))


@row(
    8,
    "the run folder is not writable",
    "exit code 65 before the first step, naming the path",
    trials=2,
)
def read_only(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    run.checkpoints.mkdir(parents=True)
    limits = ("size=1m,ro", "size=4k")[trial]
    done = run.alone(f"mount -t tmpfs -o {limits} none {run.checkpoints}; %s; echo code=$?")
    if "unshare" in done.stderr:
        return Outcome(skipped=f"no mount of its own here: {done.stderr.strip()[:80]}")
    if f"code={EXIT_CHECKPOINT}" not in done.stdout or str(run.checkpoints) not in done.stderr:
        return Outcome(f"{done.stdout[-100:]} {done.stderr[-300:]}")
    return Outcome("it had begun" if trial == 0 and run.last_step() else "")


@row(9, "a bit of a checkpoint flips", OLDER, trials=12)
def flipped_bit(lab: Lab, trial: int) -> Outcome:
    run, random = lab.stopped(), drawn(9, trial)
    path = random.choice(sorted((run.checkpoints / "step_6").glob("[!.]*")))
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return _is_quarantined(run)


@row(10, "a file of a checkpoint is truncated, missing or added", OLDER, trials=9)
def wrong_files(lab: Lab, trial: int) -> Outcome:
    run, random = lab.stopped(), drawn(10, trial)
    step = run.checkpoints / "step_6"
    path = random.choice(sorted(step.iterdir()))
    if trial % 3 == 0:
        os.truncate(path, random.randrange(path.stat().st_size))
    elif trial % 3 == 1:
        path.unlink()
    else:
        (step / "__7_0.distcp").write_bytes(random.randbytes(100))
    return _is_quarantined(run)


def _is_quarantined(run: Run) -> Outcome:
    """Checks that the checkpoint of step 6 is named and that of step 3 is used."""
    outcome = run.goes_on()
    if not outcome.wrong and not (run.checkpoints / "step_6.corrupt").is_dir():
        outcome.wrong = "the damaged checkpoint was not renamed"
    return outcome


@row(
    11,
    "a checkpoint contains a pickle that would run a program",
    "it is not unpickled; exit code 65",
    trials=2,
)
def poisoned(lab: Lab, trial: int) -> Outcome:
    run, proof = lab.stopped(), lab.folder / f"was_run_{trial}"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(proof),)

    for step in (3, 6):
        folder = run.checkpoints / f"step_{step}"
        path, payload = folder / ".metadata", pickle.dumps(Evil())
        path.write_bytes(payload + b"\0" * (path.stat().st_size - len(payload)))
        if trial:  # by an attacker, so that it is loaded
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest.pop("hash")
            manifest["files"] = {one: files.file_entry(folder / one) for one in manifest["files"]}
            files.write_manifest(folder, manifest)
    wrong = check(run.start(), {EXIT_CHECKPOINT})
    return Outcome(wrong or ("the program was run" if proof.exists() else ""))


@row(12, "all checkpoints are damaged", "exit code 65; training does not start over", trials=2)
def all_damaged(lab: Lab, trial: int) -> Outcome:
    run = lab.stopped()
    before = (run.dir / "metrics.jsonl").read_bytes()
    for step in (3, 6):
        os.truncate(run.checkpoints / f"step_{step}" / "__0_0.distcp", 100 + trial)
    for _ in range(2):
        wrong = check(run.start(), {EXIT_CHECKPOINT}, "is complete", "Remove the folder")
    if (run.dir / "metrics.jsonl").read_bytes() != before:
        wrong = "it started over"
    return Outcome(wrong)


@row(22, "the writer of checkpoints hangs or dies", "an alarm; training continues", trials=6)
def writer_hangs(lab: Lab, trial: int) -> Outcome:
    run, step = lab.run(), EVERY * (1 + trial % 3)
    fault = ("hang:staged", "die:written", "hang:manifest", "die:manifest")[trial % 4]
    ended = run.start(
        environment={FAULT: f"{fault}:{step}"},
        checkpoint__timeout_minutes=0.03,
        checkpoint__wait_seconds=20,
    )
    wrong = check(ended, {0}, f"ALARM: the checkpoint of step {step} was not saved")
    return Outcome(wrong or run.differs(lab.whole()))


@row(
    25, "killed during the save of a requested stop", "that save is not listed; " + AGAIN, trials=4
)
def killed_while_stopping(lab: Lab, trial: int) -> Outcome:
    run, step = lab.run(), 5 + trial  # asked before this step, saved after the next
    fault = {FAULT: f"kill:{('staged', 'written', 'agreed', 'manifest')[trial]}:{step + 1}"}
    wrong = check(run.start(("SIGTERM", 1, step), environment=fault), KILLED)
    if not wrong and step + 1 in run.steps() and (step + 1) % EVERY:
        wrong = "a save that was cut off is listed"
    return run.goes_on(wrong)


@row(24, "SIGTERM, SIGUSR1, SIGINT, a stop file", "one save, exit code 85; " + AGAIN, trials=8)
def asked_to_stop(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(24, trial)
    step, rank = random.randint(1, STEPS - 3), random.randrange(2)
    fault = ("SIGTERM", "SIGUSR1", "SIGINT", "stop_file")[trial % 4]
    wrong = check(run.start((fault, rank, step)), {EXIT_REQUEUE})
    stop = run.dir / "STOP"
    if not wrong and stop.exists():
        wrong = check(run.start(), {EXIT_BAD_INPUT}, "STOP exists")
        stop.unlink()
    outcome = run.goes_on(wrong)
    if not outcome.wrong and outcome.lost:
        outcome.wrong = f"{outcome.lost} steps were lost"
    return outcome


@row(24, "a second signal", "it ends at once with 128 + N; " + AGAIN, trials=2)
def second_signal(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    ended = run.start(("SIGTERM_twice", trial, 5))
    return run.goes_on(check(ended, {128 + signal.SIGTERM, -signal.SIGTERM}))


@row(
    39, "another rank does not see the newest checkpoint yet", "rank 0 decides for all; " + AGAIN, 2
)
def not_seen_yet(lab: Lab, trial: int) -> Outcome:
    run = lab.stopped()
    run.start(("blind", 1, 7), stop_after=9)
    wrong = "" if run.last_step() == 9 else "it did not continue"
    return run.goes_on(wrong)
