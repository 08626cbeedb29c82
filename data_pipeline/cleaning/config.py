"""Configuration of the cleaning of a corpus: the names of its steps, and their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import InputError, did_you_mean, one_of

STEPS = (
    *("url_blocklist", "language", "gopher_quality", "gopher_repetition", "c4", "fineweb"),
    *("quality", "decontaminate", "pii"),
)


@dataclass
class UrlBlocklistOptions:
    """Options of the step `url_blocklist`, which needs `url_field` of the source.

    files: files with one domain per line, which may be compressed. A domain covers its subdomains.
    """

    files: list[str] = field(default_factory=list)


@dataclass
class LanguageOptions:
    """Options of the step `language`.

    model: a fastText model file such as lid.176.bin.
    languages: labels of the languages to keep.
    threshold: minimum probability that one of these languages must have.
    """

    model: str | None = None
    languages: list[str] = field(default_factory=lambda: ["en"])
    threshold: float = 0.65


@dataclass
class PiiOptions:
    """Options of the step `pii`.

    email: replacement for e-mail addresses; an empty one keeps the addresses.
    ip: replacement for public IPv4 addresses; an empty one keeps the addresses.
    """

    email: str = "email@example.com"
    ip: str = "192.0.2.1"


@dataclass
class QualityOptions:
    """Options of the step `quality`.

    model: a file that `python -m data_pipeline quality` wrote, or the folder of a Hugging Face text
        classifier.
    threshold: minimum probability that a text is good.
    label: label that a Hugging Face classifier gives to good text; null uses its last label.
    """

    model: str | None = None
    threshold: float = 0.5
    label: str | None = None


@dataclass
class DecontaminateOptions:
    """Options of the step `decontaminate`, which keeps evaluation sets out of the corpus.

    files: evaluation sets as text files (one item per file) or JSON lines (one item per line).
    fields: columns of JSON lines whose joined text is an item.
    tasks: names of lm-eval tasks whose items are evaluation sets.
    task_folders: folders with definitions of further lm-eval tasks.
    n_gram: number of words in an n-gram.
    min_words: minimum number of words in an item; shorter items are ignored.
    min_matches: number of an item's n-grams that a document must contain to be dropped. If the item
        has fewer, the document must contain all of them.
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
    """Options of deduplication.

    exact: drops documents that are byte-identical to an earlier one.
    url: drops documents with the same URL as an earlier one, in the sources that have `url_field`.
    minhash: drops near duplicates, which are documents with a high Jaccard similarity of word
        n-grams.
    across_sources: also compares documents of different sources.
    against: folders of other prepared corpora. Documents that one of them contains are dropped.
        Only their index is read, which must have been made with the same options.
    n_grams: number of words in an n-gram.
    buckets: number of buckets, b.
    hashes_per_bucket: number of hashes per bucket, h. Two documents of similarity s match with
        probability 1 - (1 - s^h)^b. The defaults are those of FineWeb, which find 92% of the pairs
        with similarity 0.8 and 56% of those with 0.7.
    paragraphs: removes paragraphs that many documents contain, except from the first of these.
    paragraph_break: end of a paragraph, which is a `line` or a `blank_line`.
    paragraph_min_chars: minimum number of characters of a paragraph; shorter ones are not compared.
    paragraph_min_count: minimum number of documents that must contain a paragraph.
    task_bytes: maximum memory of one task that compares documents. The tasks are made small enough
        for it. It does not change the result.
    """

    exact: bool = True
    url: bool = False
    minhash: bool = False
    across_sources: bool = True
    against: list[str] = field(default_factory=list)
    n_grams: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8
    paragraphs: bool = False
    paragraph_break: str = "line"
    paragraph_min_chars: int = 100
    paragraph_min_count: int = 10
    task_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        key = "corpus.cleaning.dedup.paragraph"
        one_of(f"{key}_break", self.paragraph_break, ("line", "blank_line"))
        for name, least in (("min_chars", 1), ("min_count", 2)):
            found = getattr(self, f"paragraph_{name}")
            if found < least:
                raise InputError(f"{key}_{name}={found}: expected {least} or more.")


@dataclass
class CleaningConfig:
    """Configuration of cleaning.

    steps: names of the steps, in order. A source can have a list of its own.
    word_tokenizer: method by which datatrove's filters split text into words: `words` (Unicode
        letters and digits, fast) or `spacy` (English, as used for FineWeb, much slower).
    gopher_quality: arguments of datatrove's GopherQualityFilter; those omitted have its defaults.
    gopher_repetition: arguments of datatrove's GopherRepetitionFilter; those omitted have its
        defaults.
    c4: arguments of datatrove's C4QualityFilter; those omitted have its defaults.
    fineweb: arguments of datatrove's FineWebQualityFilter; those omitted have its defaults.
    url_blocklist: options of the step `url_blocklist`.
    language: options of the step `language`.
    pii: options of the step `pii`.
    quality: options of the step `quality`.
    decontaminate: options of the step `decontaminate`.
    dedup: deduplication, which follows after all steps.
    """

    steps: list[str] = field(default_factory=list)
    word_tokenizer: str = "words"
    gopher_quality: dict[str, Any] = field(default_factory=dict)
    gopher_repetition: dict[str, Any] = field(default_factory=dict)
    c4: dict[str, Any] = field(default_factory=dict)
    fineweb: dict[str, Any] = field(default_factory=dict)
    url_blocklist: UrlBlocklistOptions = field(default_factory=UrlBlocklistOptions)
    language: LanguageOptions = field(default_factory=LanguageOptions)
    pii: PiiOptions = field(default_factory=PiiOptions)
    quality: QualityOptions = field(default_factory=QualityOptions)
    decontaminate: DecontaminateOptions = field(default_factory=DecontaminateOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)

    def __post_init__(self) -> None:
        check_steps("corpus.cleaning.steps", self.steps)
        one_of("corpus.cleaning.word_tokenizer", self.word_tokenizer, ("words", "spacy"))
        for name in ("language", "quality"):
            model = getattr(self, name).model
            if model is not None and not Path(model).exists():
                raise InputError(
                    f"corpus.cleaning.{name}.model={model}: no such file or folder. Correct the "
                    "path."
                )
        for name in ("decontaminate", "url_blocklist"):
            for path in getattr(self, name).files:
                if not Path(path).exists():
                    raise InputError(
                        f"corpus.cleaning.{name}.files: {path} does not exist. Correct the path."
                    )
        for path in self.decontaminate.task_folders:
            if not Path(path).is_dir():
                raise InputError(
                    f"corpus.cleaning.decontaminate.task_folders: {path} is not a folder. Correct "
                    "the path."
                )


def check_steps(key: str, steps: Sequence[str]) -> None:
    """Raises InputError if a step is unknown or listed twice."""
    for number, step in enumerate(steps):
        if step not in STEPS:
            raise InputError(f"{key}: unknown step '{step}'{did_you_mean(step, STEPS)}.")
        if step in steps[:number]:
            raise InputError(f"{key}: '{step}' is listed twice. Remove one of the two.")
