"""`python -m eval build_tasks`: builds lm-eval tasks from the held-out files of a corpus.

There are three tasks per source, each with a YAML file and the jsonl file that it reads:

- `<corpus>_<source>_perplexity` measures bits per byte on the beginnings of held-out documents.
- `<corpus>_<source>_continuation` asks which of four continuations is the real one. The context
  ends between two words of a line. The wrong choices are cut from other held-out documents of the
  same source, also between two words of a line and with the same number of characters, so that
  neither the length nor the first and last characters give the answer away. `acc` takes the
  likeliest choice. `acc_mutual_info` takes the choice whose likelihood the context raises most, so
  that rare words do not count against a choice. (`acc_norm` would equal `acc`, as all choices have
  the same length.)
- `<corpus>_<source>_word_order` asks the same questions with different wrong choices: the real
  continuation with its words shuffled. This tests only word order, which small models learn first.

With `needle.lengths`, there is one more task per length, `<corpus>_needle_<tokens>`
(`eval.tasks.needle`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from conf.errors import InputError
from conf.output_kinds import TASKS, read_json
from conf.outputs import Output
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.documents import read_documents
from eval.files import digest_of, json_lines
from eval.tasks.forms import PERPLEXITY, multiple_choice
from eval.tasks.needle import NeedleConfig, needle_tasks

CHOICES = 4
RECORD = "tasks.json"
SPACE_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


@dataclass
class BuildTasksConfig:
    """Configuration of `build_tasks`.

    corpus: a corpus folder made by data_pipeline.
    out: the folder of tasks to write.
    questions: number of multiple-choice questions per source; fewer if its held-out text is short,
        0 for no such tasks.
    context_chars: approximate number of characters of context per question.
    continuation_chars: minimum and maximum number of characters of a choice.
    documents: maximum number of documents in a perplexity task; 0 for no such tasks.
    document_chars: maximum number of characters per document in a perplexity task.
    needle: tasks that ask for a fact in a long text; see `eval.tasks.needle`.
    overwrite: replaces `out` if it is a folder of tasks that Headwater made.
    """

    corpus: str = MISSING
    out: str = MISSING
    questions: int = 250
    context_chars: int = 300
    continuation_chars: tuple[int, int] = (80, 120)
    documents: int = 40
    document_chars: int = 1500
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key, least in (
            *(("questions", 0), ("documents", 0)),
            *(("context_chars", 1), ("document_chars", 1)),
        ):
            if getattr(self, key) < least:
                raise InputError(f"{key}={getattr(self, key)}: expected {least} or more.")
        if not (self.questions or self.documents or self.needle.lengths):
            raise InputError(
                "questions=0: there is no task to build, because documents=0 and "
                "needle.lengths=[]. Change one of them."
            )
        shortest, longest = self.continuation_chars
        if not 1 <= shortest <= longest:
            raise InputError(
                f"continuation_chars=[{shortest},{longest}]: expected the minimum and maximum "
                "number of characters of a choice, with 1 <= minimum <= maximum."
            )


def build_tasks(config: BuildTasksConfig) -> None:
    """Writes the folder of tasks, unless it already exists and was made from the same inputs.

    Raises:
        InputError: the corpus is missing or its held-out split is too small, or `out` holds
            something else.
    """
    output = Output(config.out, TASKS, config.overwrite, [config.corpus])
    output.check_foreign()
    manifest = open_corpus(config.corpus)
    out = Path(config.out)
    inputs = inputs_of(config, manifest)
    if read_json(out / RECORD).get("inputs") == inputs and not config.overwrite:
        print(f"{out} is already up to date.")
        return
    output.check("a folder of tasks made from other inputs")
    sources = sorted(manifest.source_tokens("held_out"))
    if not sources:
        raise InputError(
            f"corpus={config.corpus}: the corpus has no held-out split, which tasks are built "
            "from. Tokenize the corpus again with a corpus.held_out_fraction above 0."
        )
    samples: dict[str, int] = {}
    with output.folder() as folder:
        for source in sources:
            samples |= write_tasks(folder, out.resolve(), manifest, source, config)
        for kind, content, rows in needle_tasks(manifest, config.needle, config.seed):
            name = write_task(folder, out.resolve(), f"{manifest.name}_{kind}", content, rows)
            samples[name] = len(rows)
        record = {"format": 1, "inputs": inputs, "corpus": manifest.name, "tasks": samples}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    for name, count in samples.items():
        print(f"{out}/{name}.yaml: {count} samples")


def inputs_of(config: BuildTasksConfig, manifest: Manifest) -> str:
    """Returns what determines the tasks: the corpus, the folder and the settings."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("corpus", "out", "overwrite")}
    if not config.needle.lengths:
        del settings["needle"]  # so that folders of earlier versions are up to date
    elif config.needle.tokenizer and Path(config.needle.tokenizer).is_file():
        settings["needle"]["tokenizer"] = digest_of([Path(config.needle.tokenizer)])
    out = str(Path(config.out).resolve())
    return json.dumps([manifest.fingerprint, out, settings], sort_keys=True)


def write_tasks(
    folder: Path, final: Path, manifest: Manifest, source: str, config: BuildTasksConfig
) -> dict[str, int]:
    """Writes the tasks of a source and returns the number of samples in each.

    final: path that `folder` is moved to once it is complete.
    """
    texts = [document.text for document in read_documents(manifest, "held_out", source)]
    draw = random.Random(f"{config.seed} {source}")
    rows: dict[str, list[dict[str, Any]]] = {}
    if config.documents:
        rows["perplexity"] = [{"text": text} for text in beginnings(texts, config, draw)]
    if config.questions:
        rows["continuation"] = list(questions(texts, config, draw))
        rows["word_order"] = list(shuffled(rows["continuation"], draw))
    for kind, content_rows in rows.items():
        if not content_rows:
            raise InputError(
                f"corpus={config.corpus}: source '{source}' has too little held-out text for a "
                f"{kind} task. Raise corpus.held_out_fraction, or lower continuation_chars and "
                "context_chars."
            )
    sizes = {}
    for kind, content_rows in rows.items():
        title = f"{manifest.name}_{source}_{kind}"
        name = write_task(folder, final, title, KINDS[kind], content_rows)
        sizes[name] = len(content_rows)
    return sizes


def write_task(
    folder: Path, final: Path, title: str, content: dict[str, Any], rows: list[dict[str, Any]]
) -> str:
    """Writes the YAML file of a task and its rows, and returns the name of the task.

    title: name of the task before characters other than letters, digits and _ are replaced.
    """
    name = re.sub(r"\W+", "_", title)
    where = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(final / f"{name}.jsonl")}},
        "test_split": "test",
    }
    with (folder / f"{name}.yaml").open("w") as file:
        yaml.safe_dump({**where, **content}, file, sort_keys=False)
    (folder / f"{name}.jsonl").write_text(json_lines(rows), encoding="utf-8")
    return name


KINDS = {
    "perplexity": PERPLEXITY,
    "continuation": multiple_choice("acc_mutual_info", "acc"),
    "word_order": multiple_choice("acc"),
}


def beginnings(texts: list[str], config: BuildTasksConfig, draw: random.Random) -> Iterator[str]:
    """Yields the beginnings of random documents, cut at the end of a line if possible."""
    for text in draw.sample(texts, min(config.documents, len(texts))):
        start = text[: config.document_chars]
        if len(start) < len(text) and "\n" in start:
            start = start[: start.rindex("\n") + 1]
        if start.strip():
            yield start


def questions(
    texts: list[str], config: BuildTasksConfig, draw: random.Random
) -> Iterator[dict[str, Any]]:
    """Yields rows with context, choices and label.

    Labels are balanced, and no position in a document is used twice.
    """
    cuts = [spaces_between_words(text, config.continuation_chars[1]) for text in texts]
    contexts = [[cut for cut in positions if cut >= config.context_chars] for positions in cuts]
    usable = [number for number, positions in enumerate(contexts) if positions]
    others = [number for number, positions in enumerate(cuts) if positions]
    total = min(config.questions, sum(len(contexts[number]) for number in usable))
    if len(others) < CHOICES:
        return
    labels = [number % CHOICES for number in range(total)]
    draw.shuffle(labels)
    for number in usable:
        draw.shuffle(contexts[number])
    order = draw.sample(usable, len(usable))
    for label in labels:
        # Documents take turns, so that long ones do not dominate the task.
        while not contexts[order[0]]:
            order.pop(0)
        document = order.pop(0)
        order.append(document)
        cut = contexts[document].pop()
        length = draw.randint(*config.continuation_chars)
        real = texts[document][cut : cut + length]
        choices = list(wrong_choices(texts, cuts, others, document, length, real, draw))
        choices.insert(label, real)
        context = texts[document][cut - config.context_chars : cut]
        yield {"context": from_word(context), "choices": choices, "label": label}


def wrong_choices(
    texts: list[str],
    cuts: list[list[int]],
    others: list[int],
    document: int,
    length: int,
    real: str,
    draw: random.Random,
) -> Iterator[str]:
    """Yields CHOICES - 1 different continuations, each from a different document."""
    seen = {real}
    remaining = draw.sample(others, len(others))
    while len(seen) < CHOICES:
        if not remaining:
            raise InputError(
                "the held-out documents repeat each other too often to find wrong choices. "
                "Deduplicate the corpus, or raise corpus.held_out_fraction."
            )
        number = remaining.pop()
        start = draw.choice(cuts[number])
        choice = texts[number][start : start + length]
        if number != document and choice not in seen:
            seen.add(choice)
            yield choice


def shuffled(rows: list[dict[str, Any]], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yields the rows with shuffles of the real continuation as the wrong choices.

    Rows whose continuation has too few different words are dropped.
    """
    for row in rows:
        words = re.findall(r"\s*\S+", row["choices"][row["label"]])
        real = "".join(words)
        wrong: set[str] = set()
        for _ in range(8 * CHOICES):
            order = "".join(draw.sample(words, len(words)))
            if order != real and len(wrong) < CHOICES - 1:
                wrong.add(order)
        if len(wrong) == CHOICES - 1:
            choices = sorted(wrong)
            choices.insert(row["label"], real)
            yield {**row, "choices": choices}


def spaces_between_words(text: str, chars_after: int) -> list[int]:
    """Returns the positions of single spaces followed by at least `chars_after` characters."""
    end = max(0, len(text) - chars_after)
    return [match.start() for match in SPACE_BETWEEN_WORDS.finditer(text, 0, end)]


def from_word(context: str) -> str:
    """Returns the context without its first word, which may be cut in half."""
    head = re.search(r"\s", context[:-1])
    return context[head.end() :] if head else context
