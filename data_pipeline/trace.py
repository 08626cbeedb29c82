"""`python -m data_pipeline where`: traces steps to documents, and documents to steps (I4).

The run need not log its documents for this, because the order of samples is an invertible function.
The command also names the document that a dropped duplicate repeats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from conf.errors import InputError
from data_pipeline.dedup.answers import answer
from data_pipeline.dedup.lookup import Duplicates
from data_pipeline.lineage import Lineage
from data_pipeline.sampling.batches import BatchReader
from data_pipeline.sampling.fim_transform import Part
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import plan_from_mapping
from data_pipeline.store.corpus import open_corpus, open_stream
from data_pipeline.store.remote import cached_file
from data_pipeline.store.shards import ShardIndex
from data_pipeline.tokenizing.documents import document_names
from data_pipeline.tokenizing.tokenizer import load_tokenizer

Row = dict[str, Any]


@dataclass
class WhereConfig:
    """Configuration of `where`.

    run: run folder.
    data: folder of a corpus, instead of `run`, for `duplicate`.
    step: step to trace, counted from 1 as in the metrics.
    rank: data-parallel rank whose samples of the step are shown; null shows those of all ranks.
    doc: document to trace, instead of a step: `<file>`, `<file>#<position>` or `<shard>:<number>`,
        as printed for a step. The end of the file's path is enough.
    duplicate: document whose original to name, instead of a step: `<file>:<row>`, with rows counted
        from 0, or `<file>#<position>`, as in cleaning.json. The end of the file's path is enough.
        If the document was kept, its dropped copies are counted.
    chars: number of characters to print of each document's text; 0 prints all.
    """

    run: str | None = None
    data: str | None = None
    step: int | None = None
    rank: int | None = None
    doc: str | None = None
    duplicate: str | None = None
    chars: int = 200

    def __post_init__(self) -> None:
        if (self.step, self.doc, self.duplicate).count(None) != 2:
            raise InputError(
                "step, doc and duplicate: expected one of the three. Give step=<number>, "
                "doc=<document> or duplicate=<document>."
            )
        if (self.run is None) == (self.data is None):
            raise InputError(
                "run and data: expected one of the two. Give run=<run folder>, or data=<folder of "
                "a corpus> with duplicate=."
            )
        if self.data is not None and self.duplicate is None:
            raise InputError(
                f"data={self.data}: only a run has steps. Give run=<run folder> for step= and doc=."
            )
        if self.rank is not None and self.step is None:
            raise InputError(f"rank={self.rank}: selects samples of a step. Give step=... too.")
        if self.chars < 0:
            raise InputError(f"chars={self.chars}: expected 0 or more.")


def where(config: WhereConfig) -> None:
    """Prints one line per document or sample, with tab-separated columns."""
    if config.duplicate is not None:
        _where_duplicate(config, config.duplicate)
        return
    run = RunData(Path(str(config.run)))
    if config.step is not None:
        line = run.ledger_line(config.step)
        if line.get("skipped"):
            print(f"# step {config.step} was skipped: {line['skipped']}")
        rows: Iterable[Row] = run.documents_of_step(config.step, config.rank, config.chars)
    else:
        rows = run.steps_of_document(str(config.doc))
    header = False
    for row in rows:
        if not header:
            print("\t".join(row))
            header = True
        print("\t".join(map(str, row.values())))


def _where_duplicate(config: WhereConfig, doc: str) -> None:
    folder = config.data
    if folder is None:
        settings = Path(str(config.run)) / "config.yaml"
        if not settings.is_file():
            raise InputError(f"run={config.run}: config.yaml is missing. Give a run folder.")
        folder = OmegaConf.load(settings).data.folder
    found = list(answer(Duplicates(open_corpus(folder)), doc))
    if not found:
        print(f"# {doc} was not dropped as a duplicate, and no copy of it was dropped.")
    for sentence, _ in found:
        print(f"# {sentence}")
    for number, (_, row) in enumerate(found):
        if not number:
            print("\t".join(row))
        print("\t".join(map(str, row.values())))


class RunData:
    """The order of samples and the data of a run.

    Raises InputError if either is missing, or if the data has changed since the run.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "ledger.jsonl"
        for name in ("ledger.jsonl", "config.yaml", "env.json", "order.json"):
            self._check(run / name)
        self.settings = OmegaConf.load(run / "config.yaml")
        self.env = json.loads((run / "env.json").read_text())
        self.lineage = Lineage(run, self.env)
        corpus = open_corpus(self.settings.data.folder)
        manifest = corpus.of_run(self.env)
        if manifest is None:
            raise InputError(
                f"{run} was trained on data with the fingerprint "
                f"{self.env['data_fingerprint'][:12]}, but {self.settings.data.folder} now has the "
                f"fingerprint {corpus.fingerprint[:12]}. Restore the original data."
            )
        self.manifest = manifest
        self.order = SampleOrder.from_json((run / "order.json").read_text())
        self.stages = list(self.settings.recipe.stages)
        self.plan = plan_from_mapping(self.settings.recipe, self.order.tokens_of(-1))
        self.stream = lru_cache(lambda source: open_stream(self.manifest, "train", source))
        self.names = lru_cache(64)(self._names)
        self.index = lru_cache(64)(self._index)
        self.reader = lru_cache(lambda: BatchReader(self.manifest, self.order, check=False))

    def _check(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"run={self.run}: {path.name} is missing. Give a run folder.")

    def _names(self, shard: str) -> list[tuple[str, int]]:
        cached_file(self.manifest, f"{shard}.docs.parquet")
        return document_names(self.manifest, shard)

    def _index(self, shard: str) -> ShardIndex:
        return ShardIndex(cached_file(self.manifest, f"{shard}.idx"), self.manifest.dtype)

    def ledger(self) -> Iterator[Row]:
        """Yields the lines of the run's ledger, after those of its parents that can be read."""
        return self.lineage.ledger()

    def ledger_line(self, step: int) -> Row:
        """Returns the ledger line of a step. Raises InputError if there is none."""
        last = 0
        for line in self.ledger():
            last = line["step"]
            if last == step:
                return line
        if 0 < step <= self.lineage.fork:  # the ledger of the parent is gone
            samples, stage = self.plan.samples_at(step - 1), self.plan.at(step - 1).name
            return {"stage": stage, "first_sample": samples.start, "samples": len(samples)}
        raise InputError(
            f"step={step}: not in {self.path}, whose last step is {last}. Choose a step that the "
            "run has completed."
        )

    def ranks(self, step: int) -> int:
        """Returns the number of data-parallel ranks that ran a step."""
        ranks = 0
        metrics = Path(self.lineage.trainer_of(step)) / "metrics.jsonl"
        if metrics.is_file():
            for line in map(json.loads, metrics.read_text().splitlines()):
                if line.get("dp_size") and line["step"] < step:
                    ranks = int(line["dp_size"])
        if not ranks:
            raise InputError(
                f"{metrics} does not record the number of data-parallel ranks of step {step}. "
                "Run the command without rank=."
            )
        return ranks

    def documents_of_step(
        self, step: int, rank: int | None = None, chars: int = 0
    ) -> Iterator[Row]:
        """Yields one row per sample and document of a step, with the text inside the sample."""
        owner = self.lineage.trainer_of(step)
        is_elsewhere = self.settings.recipe.stages[self.plan.at(step - 1).name].get("source_tokens")
        if is_elsewhere and owner != str(self.run):  # in the corpus of the trunk
            yield from RunData(Path(owner)).documents_of_step(step, rank, chars)
            return
        line = self.ledger_line(step)
        stage = self.stages.index(line["stage"])
        samples = line["first_sample"] + np.arange(line["samples"])
        if rank is not None:
            ranks = self.ranks(step)
            if not 0 <= rank < ranks:
                raise InputError(
                    f"rank={rank}: step {step} had {ranks} data-parallel ranks. Give a rank from 0 "
                    f"to {ranks - 1}."
                )
            samples = np.split(samples, ranks)[rank]
        located = self.order.locate(stage, samples)
        tokenizer = load_tokenizer(self.manifest.tokenizer_path)
        seq_len = self.order.stages[stage].seq_len
        for sample, number, epoch, start in zip(
            samples.tolist(),
            located.source.tolist(),
            located.epoch.tolist(),
            located.start.tolist(),
            strict=True,
        ):
            source = self.order.sources[number]
            entries = self.manifest.shards("train", source)
            moved = self.fim_parts(stage, sample)
            before = 0
            for shard_number, inside, end in self.stream(source).parts(start, seq_len):
                shard = entries[shard_number]["file"]
                tokens = np.empty(end - inside, np.int64)
                self.stream(source).shards.read(shard_number, inside, tokens)
                for document, file, position, first, last in self._documents(shard, inside, end):
                    ids = tokens[first - inside : last - inside].tolist()
                    text = tokenizer.decode(ids, skip_special_tokens=False)
                    if chars and len(text) > chars:
                        text = text[:chars] + "..."
                    yield {
                        "sample": sample,
                        "source": source,
                        "epoch": epoch,
                        "shard": shard,
                        "document": document,
                        "file": file,
                        "position": position,
                        "tokens": last - first,
                        **_moved(moved, before + first - inside, last - first),
                        "text": json.dumps(text, ensure_ascii=False),
                    }
                before += end - inside

    def fim_parts(self, stage: int, sample: int) -> dict[int, Part] | None:
        """Returns the parts of documents in a sample by their first token, None without FIM."""
        if not self.order.stages[stage].fim:
            return None
        return {part.start: part for part in self.reader().fim_parts(stage, sample)}

    def _documents(
        self, shard: str, start: int, end: int
    ) -> Iterator[tuple[int, str, int | str, int, int]]:
        """Yields the documents that overlap a token range of a shard, skipping padding.

        Each is (number, file, position, first token in the range, end in the range).
        """
        index, names = self.index(shard), self.names(shard)
        for document in range(index.document_of(start), index.document_of(end - 1) + 1):
            file, position = names[document] if names else ("", "")
            if position == -1:
                continue
            first, last = index.document(document)
            yield document, file, position, max(start, first), min(end, last)

    def steps_of_document(self, doc: str) -> Iterator[Row]:
        """Yields one row per sample of the plan that contains tokens of a document, in order.

        `state` is `trained`, `skipped`, or `to come` if the run has not reached the sample yet.
        With parents, `run` is the run that trained the step, or will.
        Raises InputError for an unknown document.
        """
        states = {line["step"]: line.get("skipped") for line in self.ledger()}
        found = False
        for source, shard_number, shard, document in self._find(doc):
            found = True
            start, end = self.index(shard).document(document)
            before = self.stream(source).start_of(shard_number)
            file, position = self.names(shard)[document] if self.names(shard) else ("", "")
            served = self.order.find(source, before + start, before + end)
            for stage, sample, epoch, at in zip(
                served.stage.tolist(),
                served.sample.tolist(),
                served.epoch.tolist(),
                served.start.tolist(),
                strict=True,
            ):
                step = self.plan.step_of(stage, sample) + 1
                last = at + self.order.stages[stage].seq_len
                state = "skipped" if states.get(step) else "trained"
                is_done = step in states or step <= self.lineage.fork
                run = {"run": self.lineage.trainer_of(step)} if self.lineage.parents else {}
                yield {
                    "step": step,
                    **run,
                    "state": state if is_done else "to come",
                    "stage": self.stages[stage],
                    "sample": sample,
                    "source": source,
                    "epoch": epoch,
                    "shard": shard,
                    "document": document,
                    "file": file,
                    "position": position,
                    "tokens": min(last, before + end) - max(at, before + start),
                }
        if not found:
            self._refuse(doc)

    def _find(self, doc: str, split: str = "train") -> Iterator[tuple[str, int, str, int]]:
        """Yields (source, shard number, shard, document number) for each match of `doc`."""
        name, _, place = doc.rpartition("#")
        name, place = (name, place) if place.isdigit() and name else (doc, "")
        shard_name, _, number = doc.rpartition(":")
        for source in self.manifest.splits.get(split, {}):
            for shard_number, entry in enumerate(self.manifest.shards(split, source)):
                shard = entry["file"]
                if shard == shard_name and number.isdigit() and int(number) < entry["documents"]:
                    yield source, shard_number, shard, int(number)
                    continue
                for document, (file, position) in enumerate(self.names(shard)):
                    is_file = file == name or (file and file.endswith("/" + name))
                    if is_file and place in ("", str(position)):
                        yield source, shard_number, shard, document

    def _refuse(self, doc: str) -> None:
        folder = self.settings.data.folder
        if next(self._find(doc, "held_out"), None) is not None:
            raise InputError(
                f"doc={doc}: this document is in the held-out split of {folder}, which is never "
                "trained on. Choose a document of the training split."
            )
        raise InputError(
            f"doc={doc}: no such document in {folder}. Give <file>, <file>#<position> or "
            "<shard>:<number>, as `where run=... step=...` prints them."
        )


def _moved(parts: dict[int, Part] | None, start: int, tokens: int) -> Row:
    """Returns the columns about fill in the middle of a part of a document; none without it.

    They are its format, and the number of its tokens that the sample keeps.

    Args:
        parts: The parts of documents in the sample, by their first token; empty if its source has
            no fill in the middle, None if the stage has none.
        start: The first token of this part.
        tokens: Number of its tokens in the sample as it is read.
    """
    if parts is None:
        return {}
    if not parts:  # the source of the sample has none
        return {"fim": "", "kept": tokens}
    part = parts.get(start)
    return {"fim": part.format if part else "", "kept": min(part.kept, tokens) if part else 0}
