"""The cleaning of a corpus as `conf/corpus/*.yaml` states it: steps in their order, and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import InputError, did_you_mean

STEPS = (
    *("language", "gopher_quality", "gopher_repetition", "c4", "fineweb"),
    *("quality", "decontaminate", "pii"),
)


@dataclass
class LanguageOptions:
    """model: a fastText file such as lid.176.bin; languages: labels to keep; threshold: least
    probability of the best of them."""

    model: str | None = None
    languages: list[str] = field(default_factory=lambda: ["en"])
    threshold: float = 0.65


@dataclass
class PiiOptions:
    """What e-mail addresses and public IPv4 addresses become; empty leaves them."""

    email: str = "email@example.com"
    ip: str = "192.0.2.1"


@dataclass
class QualityOptions:
    """model: a file that `python -m data_pipeline quality` wrote, or the folder of a Hugging Face
    text classifier. threshold: least probability of good text. label: of good text in a Hugging
    Face classifier; null for its last one."""

    model: str | None = None
    threshold: float = 0.5
    label: str | None = None


@dataclass
class DecontaminateOptions:
    """Evaluation sets that must not be in the corpus.

    files: text files (an item a file) or JSON lines; fields: columns of JSON lines that make an
    item, joined. tasks: names of lm-eval tasks, found in task_folders too. n_gram: words of a
    match. min_words: shorter items are not looked for. min_matches: n-grams of one item that a
    document must hold to be dropped; of a shorter item all of them.
    """

    files: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=lambda: ["text"])
    tasks: list[str] = field(default_factory=list)
    task_folders: list[str] = field(default_factory=list)
    n_gram: int = 13
    min_words: int = 8
    min_matches: int = 1


@dataclass
class DedupOptions:
    """exact: copies to the byte; minhash: near copies, by Jaccard similarity of n-grams of words.

    Documents of similarity s become candidates with probability 1 - (1 - s^h)^b, with b `buckets`
    of h `hashes_per_bucket`: the default finds 92% at 0.8 and 56% at 0.75, as FineWeb's.
    across_sources: whether documents of different sources are compared.
    """

    exact: bool = True
    minhash: bool = False
    across_sources: bool = True
    n_grams: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8


@dataclass
class CleaningConfig:
    """steps: names in the order in which they are applied; a source may have its own.

    gopher_quality, gopher_repetition, c4, fineweb: arguments of datatrove's filters, those that
    are not named stay as they are there. word_tokenizer: what they split words with: `words`
    (Unicode letters and digits, quick) or `spacy` (English, as FineWeb, much slower).
    dedup comes after all steps.
    """

    steps: list[str] = field(default_factory=list)
    word_tokenizer: str = "words"
    gopher_quality: dict[str, Any] = field(default_factory=dict)
    gopher_repetition: dict[str, Any] = field(default_factory=dict)
    c4: dict[str, Any] = field(default_factory=dict)
    fineweb: dict[str, Any] = field(default_factory=dict)
    language: LanguageOptions = field(default_factory=LanguageOptions)
    pii: PiiOptions = field(default_factory=PiiOptions)
    quality: QualityOptions = field(default_factory=QualityOptions)
    decontaminate: DecontaminateOptions = field(default_factory=DecontaminateOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)

    def __post_init__(self) -> None:
        check_steps("corpus.cleaning.steps", self.steps)
        if self.word_tokenizer not in ("words", "spacy"):
            raise InputError(
                f"corpus.cleaning.word_tokenizer={self.word_tokenizer}, expected words or spacy."
            )
        for name in ("language", "quality"):
            model = getattr(self, name).model
            if model is not None and not Path(model).exists():
                raise InputError(f"corpus.cleaning.{name}.model={model} does not exist.")
        for path in self.decontaminate.files:
            if not Path(path).exists():
                raise InputError(f"corpus.cleaning.decontaminate.files: {path} does not exist.")
        for path in self.decontaminate.task_folders:
            if not Path(path).is_dir():
                raise InputError(
                    f"corpus.cleaning.decontaminate.task_folders: {path} is no folder."
                )


def check_steps(key: str, steps: Sequence[str]) -> None:
    """Raises InputError for a name that is no step, or one that comes twice."""
    for number, step in enumerate(steps):
        if step not in STEPS:
            raise InputError(f"{key}: '{step}' is no cleaning step{did_you_mean(step, STEPS)}.")
        if step in steps[:number]:
            raise InputError(f"{key} names '{step}' twice.")
