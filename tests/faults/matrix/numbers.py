"""Faults of numbers: losses, gradients, weights."""

from __future__ import annotations

from typing import Any

from conf.errors import EXIT_CORRUPT
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.lab import STEPS, Lab, Run, check, drawn
from tests.runs import records

LEFT_OUT = "the step is skipped on all ranks, the others are trained"


@row(18, "the loss is not a number on one rank", LEFT_OUT, trials=6)
def nan_loss(lab: Lab, trial: int) -> Outcome:
    return _skipped(lab, "nan_loss", drawn(18, trial).randint(1, STEPS - 1), trial % 2)


@row(20, "the gradient is infinite on one rank", LEFT_OUT, trials=6)
def inf_gradient(lab: Lab, trial: int) -> Outcome:
    return _skipped(lab, "inf_gradient", drawn(20, trial).randint(1, STEPS - 1), trial % 2)


def _skipped(lab: Lab, fault: str, step: int, rank: int) -> Outcome:
    """Checks that two runs with the fault are equal and that the replicas stay equal.

    One record has the skipped step, and the steps before it equal those of an uninterrupted run.
    """
    runs = []
    changes: dict[str, Any] = {"parallel__dp_replicate": 2, "health__compare_every_steps": 3}
    for turn in (0, 1):
        run = lab.run()
        runs.append(run)
        wrong = check(run.start((fault, (rank, 1 - rank)[turn], step), **changes), {0})
        if wrong:
            return Outcome(wrong)
        if (found := _left_out(run)) != [step]:
            return Outcome(f"steps {found} were left out, expected [{step}]")
    # Whichever rank it was, the weights are the same.
    return Outcome(runs[0].differs(runs[1], but=step))


def _left_out(run: Run) -> list[int]:
    return [record["step"] for record in records(run.dir) if record.get("skipped")]


@row(
    19,
    "the loss jumps",
    "the step is skipped, or the weights are rewound and the data is skipped",
    4,
)
def spike(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    long: dict[str, Any] = {
        "recipe__stages__short__tokens": 2048 * 24,
        "health__spike_window": 16,
        "health__spike_score": 12,
        "health__spikes": ("skip", "rewind")[trial % 2],
        "health__rewind_after": 3 - trial % 2,
    }
    ended = run.start(("spike", trial // 2, "22-23"), **long)
    wrong = check(ended, {0})
    if not wrong and trial % 2 == 0 and _left_out(run) != [22, 23]:
        wrong = f"steps {_left_out(run)} were left out, expected [22, 23]"
    if not wrong and trial % 2 == 1 and not run.events("rewind"):
        wrong = "the weights did not go back"
    return Outcome(wrong)


@row(
    35,
    "a bit of one replica of the weights flips",
    "exit code 88 at the next comparison, naming the rank",
    4,
)
def flipped_weight(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(35, trial)
    changes: dict[str, Any] = {"parallel__dp_replicate": 2, "health__compare_every_steps": 3}
    ended = run.start(("flip", trial % 2, random.randint(1, STEPS - 1)), **changes)
    wrong = check(ended, {EXIT_CORRUPT}, "rank")
    outcome = Outcome(wrong)
    if not wrong:
        whole = lab.run()
        whole.start(**changes)
        again = run.start(**changes)
        outcome.wrong = check(again, {0}) or run.differs(whole)
        outcome.wrong_resume = bool(outcome.wrong)
    return outcome


@row(36, "an update is wrong by one bit", "exit code 88 when the step is replayed", trials=2)
def wrong_update(lab: Lab, trial: int) -> Outcome:
    ended = lab.run().start(("drift_once", 0, 5 + trial), health__replay_steps=f"[{5 + trial}]")
    return Outcome(check(ended, {EXIT_CORRUPT}))
