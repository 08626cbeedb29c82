"""Drops documents that contain items of an evaluation set, which are found by shared word n-grams.

Words are runs of letters and digits in lower case, so matches do not depend on case or punctuation.
The default of 13 words is from GPT-3 (Brown et al., 2020, appendix C). A shorter item must match as
a whole, and an item of fewer than `min_words` words is counted but not searched for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError, did_you_mean, first_line
from conf.text_files import JSON_ENDINGS, json_objects
from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig, DecontaminateOptions
from data_pipeline.cleaning.ngrams import n_grams, n_grams_by_length, word_hashes, words
from data_pipeline.splitmix import UInts

FILTER_BITS = (16, 26)
"""Minimum and maximum number of hash bits that index the table used to rule out most n-grams."""


def make(config: CleaningConfig) -> Step:
    """Makes the step `decontaminate`. Raises InputError if no evaluation set can be read."""
    options = config.decontaminate
    index = NgramIndex(options.n_gram, options.min_words, options.min_matches)
    for name, items in evaluation_sets(options):
        index.add(name, items)
    if not index.sets:
        raise InputError(
            "corpus.cleaning.decontaminate: no evaluation sets are given. Set files or tasks, or "
            "remove the step 'decontaminate'."
        )
    index.build()

    def step(text: str) -> Verdict:
        found = index.find(text)
        if found is None:
            return Verdict(text)
        name, gram = found
        return Verdict(text, f"in_{name}", gram)

    step.fingerprint = index.fingerprint()  # type: ignore[attr-defined]
    step.evaluation_sets = index.sets  # type: ignore[attr-defined]
    return step


class NgramIndex:
    """An index of the n-grams of evaluation items, which finds these items in documents."""

    def __init__(self, n_gram: int, min_words: int, min_matches: int) -> None:
        self.n_gram = n_gram
        self.min_words = min_words
        self.min_matches = min_matches
        self.sets: dict[str, dict[str, int]] = {}
        self._items: list[tuple[str, int]] = []  # (set, number of n-grams)
        self._grams: dict[int, list[tuple[UInts, int]]] = defaultdict(list)
        self._tables: dict[int, tuple[UInts, NDArray[np.int64], NDArray[np.bool_]]] = {}

    def add(self, name: str, items: Iterable[str]) -> None:
        """Adds the items of a set. Those of fewer than `min_words` words count as too short."""
        counts = self.sets.setdefault(name, {"items": 0, "too_short": 0})
        for text in items:
            hashes = word_hashes(words(text))
            counts["items"] += 1
            if len(hashes) < self.min_words:
                counts["too_short"] += 1
                continue
            n = min(self.n_gram, len(hashes))
            grams = np.unique(n_grams(hashes, n))
            self._grams[n].append((grams, len(self._items)))
            self._items.append((name, len(grams)))

    def build(self) -> None:
        """Builds the tables that `find` needs. Call it after all sets have been added."""
        for n, parts in sorted(self._grams.items()):
            grams = np.concatenate([part for part, _ in parts])
            owners = np.concatenate([np.full(len(part), item) for part, item in parts])
            order = np.argsort(grams, kind="stable")
            bits = int(np.clip(len(grams).bit_length() + 4, *FILTER_BITS))
            seen = np.zeros(1 << bits, bool)
            seen[grams >> np.uint64(64 - bits)] = True
            self._tables[n] = grams[order], owners[order], seen
        self._grams.clear()

    def find(self, text: str) -> tuple[str, str] | None:
        """Returns the name of a set that overlaps a text and the first shared n-gram, or None."""
        found = words(text)
        for n, rolled in n_grams_by_length(word_hashes(found), list(self._tables)):
            grams, owners, seen = self._tables[n]
            bits = len(seen).bit_length() - 1
            maybe = seen[rolled >> np.uint64(64 - bits)].nonzero()[0]
            if not len(maybe):  # true for most documents
                continue
            low = np.searchsorted(grams, rolled[maybe], "left")
            high = np.searchsorted(grams, rolled[maybe], "right")
            hits: dict[int, set[int]] = defaultdict(set)
            first: dict[int, int] = {}
            for place, start, end in zip(maybe.tolist(), low, high, strict=True):
                for item in owners[start:end].tolist():
                    hits[item].add(int(rolled[place]))
                    first.setdefault(item, place)
            for item, matched in hits.items():
                name, total = self._items[item]
                if len(matched) >= min(self.min_matches, total):
                    return name, " ".join(found[first[item] : first[item] + n])
        return None

    def fingerprint(self) -> str:
        """Returns a sha256 that identifies all indexed items."""
        digest = hashlib.sha256(json.dumps(self.sets, sort_keys=True).encode())
        for _, (grams, owners, _) in sorted(self._tables.items()):
            digest.update(grams.tobytes() + owners.astype("<i8").tobytes())
        return digest.hexdigest()


def evaluation_sets(options: DecontaminateOptions) -> Iterator[tuple[str, Iterable[str]]]:
    """Yields the name and the items of each evaluation set."""
    paths = [Path(file) for file in options.files]
    stems = Counter(path.name.split(".")[0] for path in paths)
    for path in paths:
        stem = path.name.split(".")[0]
        name = stem if stems[stem] == 1 else f"{path.absolute().parent.name}/{stem}"
        yield name, _items_of_file(path, options.fields)
    if options.tasks:
        yield from _items_of_tasks(options.tasks, options.task_folders)


def _items_of_file(path: Path, fields: Sequence[str]) -> Iterator[str]:
    if not path.name.endswith(JSON_ENDINGS):
        yield path.read_text(encoding="utf-8-sig", errors="replace")
        return
    key = "corpus.cleaning.decontaminate"
    for place, row in json_objects(path, f"{key}.files"):
        parts = [str(row[field]) for field in fields if row.get(field) is not None]
        if not parts:
            raise InputError(
                f"{key}.fields={list(fields)}: {place} has none of these columns. Choose from its "
                f"columns: {', '.join(row)}."
            )
        yield " ".join(parts)


def _items_of_tasks(
    names: Sequence[str], folders: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    key = "corpus.cleaning.decontaminate.tasks"
    try:
        import datasets
        import lm_eval.models  # noqa: F401  (first, else its registry hides built-in models)
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            f'{key} requires the package lm_eval. Run pip install -c constraints.txt -e ".[eval]".'
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # Listing the tasks of lm-eval itself takes ten seconds.
    manager = TaskManager(include_path=list(folders), include_defaults=False) if folders else None
    if manager is None or any(name not in manager.all_tasks for name in names):
        manager = TaskManager(include_path=list(folders) or None)
    for name in names:
        if name not in manager.all_tasks:
            raise InputError(
                f"{key}: lm-eval has no task '{name}'{did_you_mean(name, manager.all_tasks)}. "
                "For a task of your own, add its folder to task_folders."
            )
        try:
            for label, task in manager.load(name)["tasks"].items():  # a group has several tasks
                yield label, [_rendered(task, row) for row in task.eval_docs]
        except (OSError, ValueError) as error:
            raise InputError(
                f"{key}: the data of '{name}' cannot be loaded ({first_line(error)}). Download "
                "them first, or remove the task."
            ) from None


def _rendered(task: Any, row: Any) -> str:
    """Returns the text of an evaluation item: its prompt followed by the correct answer."""
    question, answer = task.doc_to_text(row), task.doc_to_target(row)
    choices = task.doc_to_choice(row) if task.config.doc_to_choice is not None else None
    if isinstance(answer, int) and choices:
        answer = choices[answer]
    if isinstance(question, int) and choices:  # a task with several variants of the question
        question = choices[question]
    answers = answer if isinstance(answer, list) else [answer]
    return " ".join(str(part) for part in (question, *answers[:1]))
