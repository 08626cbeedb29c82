"""Faults of data that is damaged before or while it is read."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import numpy as np

from conf.errors import EXIT_BAD_INPUT
from data_pipeline.store.checksums import read_with_checksums
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.kills import AGAIN
from tests.faults.matrix.lab import Lab, check, drawn

REFUSED = "exit code 2 before the first step, naming the file"


@row(
    13, "a bit of a shard flips", "exit code 2 at the first read, naming shard and block", trials=4
)
def flipped_token(lab: Lab, trial: int) -> Outcome:
    folder, random = lab.damaged_corpus(), drawn(13, trial)
    shards = sorted((folder / "train").glob("*.bin"))
    for path in shards:  # whichever is read first
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    run = lab.run(folder)
    wrong = check(run.start(), {EXIT_BAD_INPUT}, ".bin")
    for path in shards:
        shutil.copyfile(lab.corpus / "train" / path.name, path)
    return run.goes_on(wrong)


@row(14, "a shard or index is truncated, of another corpus or type", REFUSED, trials=6)
def wrong_shard(lab: Lab, trial: int) -> Outcome:
    folder, random = lab.damaged_corpus(), drawn(14, trial)
    kind = (".bin", ".idx")[trial % 2]
    path = random.choice(sorted((folder / "train").glob(f"*{kind}")))
    if trial < 2:
        os.truncate(path, random.randrange(path.stat().st_size))
    elif trial < 4:
        other = sorted((folder / "held_out").glob(f"*{kind}"))[0]
        shutil.copyfile(other, path)
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["dtype"] = "int32"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    run = lab.run(folder)
    wrong = check(run.start(), {EXIT_BAD_INPUT}, "error: ")
    return Outcome(wrong or ("it had begun" if run.last_step() else ""))


@row(15, "a token id outside the vocabulary", REFUSED, trials=3)
def token_beyond(lab: Lab, trial: int) -> Outcome:
    folder, random = lab.damaged_corpus(), drawn(15, trial)
    path = random.choice(sorted((folder / "train").glob("*.bin")))
    tokens = np.fromfile(path, np.uint16)
    tokens[random.randrange(len(tokens))] = 60_000
    tokens.tofile(path)
    sums = b"".join(sums.tobytes() for _, sums in read_with_checksums(path))
    path.with_suffix(".sums").write_bytes(sums)  # it was tokenized with another tokenizer
    return Outcome(check(lab.run(folder).start(), {EXIT_BAD_INPUT}, "60000"))


@row(
    16,
    "a shard disappears or shrinks while it is read",
    "an error that names it, or no effect; " + AGAIN,
    4,
)
def shard_goes(lab: Lab, trial: int) -> Outcome:
    folder = lab.damaged_corpus()
    run = lab.run(folder)
    fault = ("shards_go", "shards_shrink")[trial % 2]
    ended = run.start((fault, 0, 4 + trial))
    shutil.copytree(lab.corpus, folder, dirs_exist_ok=True)
    if set(ended.codes) == {0}:  # what is open stays readable
        return Outcome(run.differs(lab.whole()))
    said = run.said()  # the rank that finds it may end the others before they print
    wrong = "" if ".bin" in said or "Bus error" in said else said[-300:]
    return run.goes_on(wrong)


@row(
    17,
    "the tokenizer is missing or changed, or the vocabulary is another model's",
    REFUSED,
    trials=3,
)
def wrong_tokenizer(lab: Lab, trial: int) -> Outcome:
    folder = lab.damaged_corpus()
    path = folder / "tokenizer.json"
    changes: dict[str, Any] = {}
    if trial == 0:
        path.unlink()
    elif trial == 1:
        path.write_text(path.read_text().replace("<pad>", "<fad>"))
    else:
        changes = {"model__vocab_size": 128}
    run = lab.run(folder)
    wrong = check(run.start(**changes), {EXIT_BAD_INPUT}, "vocab" if trial == 2 else "tokenizer")
    return Outcome(wrong or ("it had begun" if run.last_step() else ""))
