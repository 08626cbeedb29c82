"""`python -m data_pipeline ledger`: the documents that a step of a run was trained on (I4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf

from conf.errors import InputError
from data_pipeline.batches import open_stream
from data_pipeline.documents import document_names
from data_pipeline.manifest import load_manifest
from data_pipeline.order import SampleOrder
from data_pipeline.shards import Shard

COLUMNS = ("sample", "source", "epoch", "shard", "document", "file")


@dataclass
class LedgerConfig:
    """run: a run folder; step: counted from 1, as in its metrics."""

    run: str = MISSING
    step: int = MISSING


def ledger(config: LedgerConfig) -> None:
    """Prints a line a document with tabs between its columns, for a reader or for `cut`."""
    rows = documents_of_step(Path(config.run), config.step)
    lines = [COLUMNS, *([str(row[column]) for column in COLUMNS] for row in rows)]
    print("\n".join("\t".join(line) for line in lines))


def documents_of_step(run: Path, step: int) -> list[dict[str, Any]]:
    """The documents of a step's samples, in order; raises InputError where the ledger does not
    hold the step, or the run's data is no longer what it was trained on."""
    path = run / "ledger.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected run={run} to be a run folder.")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = next((line for line in lines if line["step"] == step), None)
    if found is None:
        raise InputError(
            f"{path} has no step {step}, its last is {lines[-1]['step'] if lines else 0}."
        )
    for needed in (run / "config.yaml", run / "env.json", run / "order.json"):
        if not needed.is_file():
            raise InputError(f"{needed} does not exist: expected run={run} to be a run folder.")
    settings = OmegaConf.load(run / "config.yaml")
    manifest = load_manifest(settings.data.folder)
    trained_on = json.loads((run / "env.json").read_text())["data_fingerprint"]
    if manifest.fingerprint != trained_on:
        raise InputError(
            f"{run} was trained on data with the fingerprint {trained_on[:12]}, but "
            f"{manifest.folder} now has {manifest.fingerprint[:12]}: restore that data."
        )
    order = SampleOrder.from_json((run / "order.json").read_text())
    stage = list(settings.recipe.stages).index(found["stage"])
    seq_len = order.stages[stage].seq_len
    samples = found["first_sample"] + np.arange(found["samples"])
    located = order.locate(stage, samples)
    streams = {source: open_stream(manifest, "train", source) for source in order.sources}
    names_of = cache(lambda shard: document_names(manifest, shard))
    rows = []
    for sample, number, epoch, start in zip(
        samples, located.source, located.epoch, located.start, strict=True
    ):
        source = order.sources[number]
        entries = manifest.shards("train", source)
        for shard_number, inside, end in streams[source].parts(int(start), seq_len):
            name = entries[shard_number]["file"]
            shard = Shard(manifest.folder / name, manifest.dtype, entries[shard_number])
            for document in range(shard.document_of(inside), shard.document_of(end - 1) + 1):
                names = names_of(name)
                file = names[document][0] if names else ""
                rows.append(
                    {
                        "sample": int(sample),
                        "source": source,
                        "epoch": int(epoch),
                        "shard": name,
                        "document": document,
                        "file": file,
                    }
                )
    return rows
