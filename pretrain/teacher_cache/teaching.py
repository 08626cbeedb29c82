"""The work of teaching: which samples, in which units, and how one unit is computed and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conf.errors import InputError
from conf.files import write_atomically
from data_pipeline.sampling.batches import Batch, BatchReader
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.padding import pad_batch
from data_pipeline.sampling.recipe import RecipeConfig, StagePlan
from data_pipeline.store.checksums import read_with_checksums, sha256_of_file
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from pretrain.branches.trunk import Trunk, read_trunk
from pretrain.objectives.distill.answers import TeacherAnswers
from pretrain.teacher_cache.config import TeachConfig
from pretrain.teacher_cache.coverage import Contexts
from pretrain.teacher_cache.manifest import CacheManifest
from pretrain.teacher_cache.records import context_hashes, encode
from pretrain.teacher_cache.units import Unit, read_steps, samples_of, units_of

Answer = Callable[[Batch], TeacherAnswers]
"""Returns a teacher's answers to a batch, for whole sequences."""


@dataclass(frozen=True)
class Teaching:
    """The samples to teach.

    Attributes:
        config: Config of the command.
        corpus: The newest edition of the corpus that the recipe reads.
        run: The contexts of the runs that the cache is for.
        units: The units of all processes.
        steps: The steps to teach, counted from 0.
    """

    config: TeachConfig
    corpus: Manifest
    run: Contexts
    units: list[Unit]
    steps: range

    @classmethod
    def of(cls, config: TeachConfig) -> Teaching:
        """Returns the work of a command. Raises InputError if the recipe does not fit the data."""
        corpus = open_corpus(str(config.data))
        corpus.check_tokenizer()
        fork = 0
        if config.branch_from:
            trunk = read_trunk(config.branch_from)
            fork = trunk.step
            keep_editions(config.recipe, trunk, corpus, str(config.data))
        plan = StagePlan(config.recipe, corpus.edition_tokens("train"))
        order = SampleOrder(
            *(plan.source_tokens, plan.stages, config.seed),
            *(config.max_epochs, config.recipe.atom_tokens),
        )
        data = [corpus.at_edition(stage.edition).fingerprint for stage in plan.stages]
        run = Contexts(plan, order, config.recipe, data, corpus.tokenizer["sha256"])
        steps = read_steps(config.steps, plan.total_steps)
        if config.steps is None:
            steps = range(fork, plan.total_steps)
        ranges = samples_of(plan, steps)
        newest = corpus.at_edition(plan.stages[-1].edition)
        return cls(config, newest, run, units_of(plan, ranges, config.unit_tokens), steps)

    def manifest(self, teacher: dict[str, Any], precision: str) -> CacheManifest:
        """Returns the manifest of the cache, without files.

        Args:
            teacher: Identity of the teacher.
            precision: Precision of its matrix products.
        """
        config, plan = self.config, self.run.plan
        steps = self.steps
        return CacheManifest(
            teacher=teacher,
            tokenizer=self.run.tokenizer,
            vocab_size=self.corpus.vocab_size,
            precision=precision,
            top_k=config.top_k,
            order=json.loads(self.run.order.to_json()),
            data=list(self.run.data),
            contexts=[self.run.of_stage(stage.index) for stage in plan.stages],
            stages=[stage.name for stage in plan.stages],
            steps=[steps.start + 1, steps.stop],
            samples=samples_of(plan, steps),
            micro_batch_tokens=config.micro_batch_tokens,
            unit_tokens=config.unit_tokens,
            files=[],
        )

    def reader(self) -> BatchReader:
        """Opens the shards of the corpus."""
        return BatchReader(self.corpus, self.run.order, cache_bytes=self.config.cache_bytes)


def keep_editions(recipe: RecipeConfig, trunk: Trunk, corpus: Manifest, folder: str) -> None:
    """Sets the editions that the stages of a trunk read, in the recipe of a branch.

    folder: The corpus as it was given, for messages.

    Raises:
        InputError: The corpus lacks one of them.
    """
    begun = trunk.about["position"]["stage"] + 1
    prints = [entry["data"] for entry in trunk.about.get("editions", [])][:begun]
    stages = list(recipe.stages.values())[:begun]
    for stage, data in zip(stages, prints or [trunk.about["data"]] * begun, strict=True):
        edition = corpus.find_edition(data)
        if edition is None:
            raise InputError(
                f"data={folder}: this is not the corpus of {trunk.label}. The answers for a branch "
                "in another corpus cannot be computed before it trains: use objective.teacher."
            )
        stage.edition = edition.edition_count


def write_unit(folder: Path, unit: Unit, parts: Iterator[bytes]) -> dict[str, Any]:
    """Writes the records of a unit and their checksums, and returns the entry of its file."""
    path = folder / f"{unit.file}.bin"

    def write(file: BinaryIO) -> None:
        for part in parts:
            file.write(part)

    write_atomically(path, write)
    sums = np.concatenate([checksums for _, checksums in read_with_checksums(path)])
    write_atomically(path.with_suffix(".sums"), lambda file: file.write(sums.tobytes()))
    return {
        "file": unit.file,
        "stage": unit.stage,
        "first": unit.first,
        "samples": unit.samples,
        "bytes": path.stat().st_size,
        "sha256": sha256_of_file(path),
    }


def answered(
    teaching: Teaching, cache: CacheManifest, reader: BatchReader, unit: Unit, answer: Answer
) -> Iterator[bytes]:
    """Yields the records of a unit, one micro-batch at a time.

    The micro-batches of a unit have the same shapes in every process, so their sums have the same
    order, and the records the same bytes.
    """
    stage = teaching.run.plan.stages[unit.stage]
    form, samples = cache.form(unit.stage), unit.first + np.arange(unit.samples)
    rows = max(1, cache.micro_batch_tokens // stage.seq_len)
    for real in reader.read_all(unit.stage, samples, rows):
        contexts = context_hashes(real.joined() if stage.joins_documents else real)
        batch = pad_batch(real, rows, reader.document_tokens[unit.stage])
        if stage.joins_documents:
            batch = batch.joined()
        found = answer(batch)
        tensors = (found.ids, found.log_probabilities, found.log_rest)
        count = len(real.samples)
        yield encode(form, contexts, *(part[:count] for part in tensors)).tobytes()
