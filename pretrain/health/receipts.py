"""Writes and compares `receipts.jsonl`: the exact result of each step, as a hash chain.

A line contains the step, the digest of its tokens, the exact bits of its loss and gradient norm,
and a hash of these and of the previous line. Every `health.compare_every_steps` steps, and at the
end, it also contains the fingerprint of the weights. Two runs with equal last lines had equal
results in every step. The results depend on the layout, unlike `ledger.jsonl`, which is the same
for every layout. A line of a GPU run without `deterministic=true` has `"deterministic": false`: its
kernels do not promise the same bits in an equal run. The first line of a branch continues the chain
of its trunk, whose hash at that step it contains as `after`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.errors import EXIT_CORRUPT, EXIT_FAILED, InputError, RunAborted
from pretrain.determinism import promises_bits
from pretrain.health import fingerprint
from pretrain.hooks import Hook, Order, TrainerView
from pretrain.processes import Processes
from pretrain.records import RecordLog, drop_steps_after
from pretrain.step_numbers import HostCopy

FILE = "receipts.jsonl"
CHAIN_KEYS = ("chain", "after")
"""Keys of a line that belong to the chain, and not to the result of the step."""


class Receipts(Hook):
    """Compares the replicas of the weights on all ranks, and writes receipts on rank 0.

    The replicas are compared when the step's record is published, so that no host waits for the
    device. A checkpoint is saved after that, so diverged replicas are never saved.
    """

    order = Order.VERIFY

    def __init__(self, run_dir: Path, every_steps: int, processes: Processes) -> None:
        self.lines = RecordLog(run_dir / FILE)
        self.every_steps = every_steps
        self.is_main, self.world_size = processes.is_main, processes.world_size
        self.comparisons: dict[int, HostCopy] = {}
        self.weights: dict[int, str] = {}
        self.chain = self.saved_chain = ""
        self.is_exact = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the hash of the last line."""
        return {"chain": self.chain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keeps the hash of a checkpoint, for a branch that continues the chain in a new file."""
        self.saved_chain = state["chain"]

    def on_start(self, trainer: TrainerView) -> None:
        """Continues the hash chain of an existing file."""
        self.layout = trainer.layout
        self.is_exact = promises_bits(trainer.config, trainer.processes.device.type)
        if self.is_main:
            path = self.lines.path
            drop_steps_after(path, trainer.step)
            lines = read(path) if path.exists() else []
            self.chain = lines[-1]["chain"] if lines else self.saved_chain
            self.is_first = not lines

    def after_step(self, trainer: TrainerView) -> None:
        """Starts a comparison of the replicas when due."""
        step = trainer.step
        is_last = step == trainer.plan.total_steps
        if not self.every_steps or not (step % self.every_steps == 0 or is_last):
            return
        sums = fingerprint.local_sums(trainer.model)
        self.comparisons[step] = fingerprint.gather(sums, self.world_size)
        if trainer.pending is None:  # the record of this step is published already
            self._compare(step)

    def _compare(self, step: int) -> None:
        """Ends the comparison of a step. Raises RunAborted on all ranks if replicas differ."""
        gathered = self.comparisons.pop(step).read()[0].tolist()
        unequal = fingerprint.unequal_replicas(gathered, self.layout)
        if unequal:
            groups = "; ".join(
                f"rank {_names(wrong)} differs from rank {_names(right)}"
                if right
                else f"ranks {_names(wrong)} differ from each other"
                for wrong, right in unequal
            )
            raise RunAborted(
                f"replicas of the weights differ after step {step} ({groups}), likely because of "
                f"silent data corruption in the last {self.every_steps} steps. Test the machines "
                "of these ranks, exclude the faulty one, and restart from a checkpoint before "
                "these steps.",
                EXIT_CORRUPT,
            )
        self.weights[step] = fingerprint.fingerprint(gathered)

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Ends the comparison of a step, and writes the receipt of the step."""
        step = record["step"]
        if record["kind"] == "train" and step in self.comparisons:
            self._compare(step)
        if record["kind"] != "train":
            self.lines.close()  # rare, unlike train records
        if not self.is_main or record["kind"] != "train" or not self.every_steps:
            return
        line: dict[str, Any] = {"step": step, "digest": record["digest"]}
        line |= {key: float(record[key]).hex() for key in ("loss", "grad_norm")}
        if not self.is_exact:
            line["deterministic"] = False
        if step in self.weights:
            line["weights"] = self.weights.pop(step)
        if self.is_first and self.chain:
            line["after"] = self.chain
        self.is_first = False
        self.chain = line["chain"] = link(self.chain, line)
        self.lines.append(line)

    def on_leave(self, trainer: TrainerView) -> None:
        """Closes the file."""
        self.lines.close()


def link(before: str, line: Mapping[str, Any]) -> str:
    """Returns the hash of a line together with the hash of the previous line."""
    own = {key: value for key, value in line.items() if key not in CHAIN_KEYS}
    content = json.dumps([before, own], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the receipts of a file. Raises InputError if it is unreadable or its chain broken."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        before = lines[0].get("after", "") if lines else ""
        for number, line in enumerate(lines, 1):
            if link(before, line) != line["chain"]:
                raise InputError(
                    f"{path}: the hash of line {number} does not match, so the file was changed. "
                    "Compare the weights of the runs instead."
                )
            before = line["chain"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Choose a run that wrote receipts "
            "(health.compare_every_steps above 0)."
        ) from None
    return lines


@dataclass
class ReceiptsConfig:
    """Two runs to compare.

    a: folder of one run.
    b: folder of the other run.
    """

    a: str = MISSING
    b: str = MISSING


def receipts(config: ReceiptsConfig) -> None:
    """Prints whether two runs are equal bit by bit, over the steps that both have.

    A branch has the steps after the fork. Those before are compared by the hash of the chain.

    Raises RunAborted at the first difference.
    """
    one, other = (read(Path(run) / FILE) for run in (config.a, config.b))
    first = max(lines[0]["step"] if lines else 1 for lines in (one, other))
    one, other = ([line for line in lines if line["step"] >= first] for lines in (one, other))
    for ours, theirs in zip(one, other, strict=False):
        differ = [k for k in ours | theirs if k not in CHAIN_KEYS and ours.get(k) != theirs.get(k)]
        if differ:
            exact = all(line.get("deterministic", True) for line in (ours, theirs))
            values = ", ".join(
                f"{key} {_shown(ours, key)} and {_shown(theirs, key)}" for key in differ
            )
            note = (
                ""
                if exact
                else (" Kernels of a GPU without deterministic=true may cause such a difference.")
            )
            raise RunAborted(
                f"the runs first differ in step {ours['step']}: {values}.{note}", EXIT_FAILED
            )
    both = min(len(one), len(other))
    if not both:
        raise InputError(
            f"{config.a} and {config.b} have no step in common. Train both runs for at least one "
            "step."
        )
    if one[both - 1]["chain"] != other[both - 1]["chain"]:
        raise RunAborted(
            f"the runs are equal from step {first} to {one[both - 1]['step']}, but the steps "
            "before differ or are not recorded, because the hashes of the chains differ.",
            EXIT_FAILED,
        )
    weights = sum("weights" in line for line in one[:both])
    print(
        f"equal bit by bit: tokens, loss and gradient norm of {both} steps, weights at {weights} "
        f"of them (chain {one[both - 1]['chain']})"
    )
    for run, lines in ((config.a, one), (config.b, other)):
        if len(lines) > both:
            print(f"{run} has {len(lines) - both} more steps")


def _shown(line: Mapping[str, Any], key: str) -> str:
    value = line.get(key, "-")
    return f"{float.fromhex(value):.9g}" if key in ("loss", "grad_norm") else str(value)


def _names(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
