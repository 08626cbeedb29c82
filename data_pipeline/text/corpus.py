"""Configuration of `tokenize`: the corpus with its named sources, and the tokenizer."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, field
from itertools import pairwise

from omegaconf import MISSING, OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError, one_of
from data_pipeline.cleaning.chain import READS_URL
from data_pipeline.cleaning.config import CleaningConfig, check_steps

FORMATS = ("text", "jsonl", "parquet", "huggingface", "warc", "wet")
ARCHIVES = ("warc", "wet")
ENCODERS = ("gigatoken", "tokenizers")


# Resolves `${python:stdlib}` in a YAML file to a folder of the running Python.
def _python_folder(name: str) -> str:
    return sysconfig.get_paths()[{"site_packages": "purelib"}.get(name, name)]


# Resolves `${conf:corpus/...}` in a YAML file to a path in the conf folder.
def _conf_file(name: str) -> str:
    return str(CONF_DIR / name)


OmegaConf.register_new_resolver("python", _python_folder, replace=True)
OmegaConf.register_new_resolver("conf", _conf_file, replace=True)


@dataclass
class SourceConfig:
    """Configuration of one named source of a corpus.

    format: `text` (one document per file), `jsonl` (plain, or compressed as .gz, .zst, .bz2 or
        .xz), `parquet`, `huggingface` (each of `paths` is then the name or folder of a dataset,
        whose rows are streamed), `warc` (web pages, whose text is extracted) or `wet` (their text).
    paths: files, folders (read recursively) or globs, as local paths or fsspec URLs (s3://...).
    suffixes: file endings to read inside folders; all if empty.
    exclude: globs of files to skip, matched with the path inside the folder.
    text_field: column that contains the text.
    url_field: column that contains the URL, such as `url` or, inside of an object, `metadata.url`;
        null if there is none. Pages of web archives have the column `url`.
    no_loss_field: column with [start, end) ranges of characters that the model reads but is not
        trained to predict; null for none.
    max_bytes: approximate number of bytes of text to take; 0 takes all. Whole files are taken in
        the order of a hash of their names. From a Hugging Face dataset, the first rows are taken.
    min_file_bytes: minimum size of a file in bytes; smaller files are skipped.
    max_file_bytes: maximum size of a file in bytes; larger files are skipped. 0 means no limit.
    min_chars: minimum number of characters in a document, before cleaning; shorter ones are
        dropped and counted. Sources with different limits split the same files by length.
    max_chars: maximum number of characters in a document; longer ones are dropped and counted.
        0 means no limit.
    max_line_length: maximum number of characters in a line; documents with a longer line are
        dropped and counted. 0 means no limit.
    min_letters: minimum fraction of letters in a document; documents with a smaller one are dropped
        and counted.
    max_malformed: maximum number of unusable rows per unit of work; the command fails if there are
        more. A row is unusable if it is not valid JSON or UTF-8, or has no text. Such rows are
        written to `rejected/` with file and line.
    steps: cleaning steps of this source; null uses those of the corpus.
    subset: configuration name of a Hugging Face dataset; null for a dataset without one.
    split: split of a Hugging Face dataset.
    """

    format: str = "text"
    paths: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    text_field: str = "text"
    url_field: str | None = None
    no_loss_field: str | None = None
    max_bytes: int = 0
    min_file_bytes: int = 1
    max_file_bytes: int = 0
    min_chars: int = 0
    max_chars: int = 0
    max_line_length: int = 0
    min_letters: float = 0.0
    max_malformed: int = 100
    steps: list[str] | None = None
    subset: str | None = None
    split: str = "train"

    @property
    def url_column(self) -> str | None:
        """The column that contains the URL, or None if there is none."""
        return "url" if self.format in ARCHIVES and not self.url_field else self.url_field


@dataclass
class CorpusConfig:
    """Configuration of a corpus.

    name: name of the corpus.
    held_out_fraction: fraction of the documents that is never trained on.
    seed: seed of the held-out split and of the shuffling of documents.
    shard_bytes: approximate number of bytes of text per shard.
    fit: sequence lengths in tokens to pack documents into, such as [2048, 4096]. A stage whose
        sequences are long enough for a document then never cuts it, and the rest of a sequence is
        filled with padding. If empty, documents are concatenated.
    cleaning: cleaning of the documents of all sources.
    sources: sources by name, each with its files and rules.
    """

    name: str = MISSING
    seed: int = 0
    held_out_fraction: float = 0.01
    shard_bytes: int = 256_000_000
    fit: list[int] = field(default_factory=list)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("corpus.sources is empty. Add at least one source.")
        if not 0 <= self.held_out_fraction < 1:
            raise InputError(
                f"corpus.held_out_fraction={self.held_out_fraction}: expected 0 or more and less "
                "than 1."
            )
        lengths = sorted(self.fit)
        if any(b % a for a, b in pairwise(lengths)) or (lengths and lengths[0] < 2):
            raise InputError(
                f"corpus.fit={list(self.fit)}: expected lengths of 2 tokens or more, each a "
                "divisor of the next longer one, such as [2048, 4096]."
            )
        for name, source in self.sources.items():
            one_of(f"corpus.sources.{name}.format", source.format, FORMATS)
            if not source.paths:
                raise InputError(f"corpus.sources.{name}.paths is empty. Give files or folders.")
            if source.no_loss_field and source.format == "text":
                raise InputError(
                    f"corpus.sources.{name}.no_loss_field={source.no_loss_field}: format=text has "
                    "no columns. Use another format, or remove the key."
                )
            if source.max_chars and source.max_chars < source.min_chars:
                raise InputError(
                    f"corpus.sources.{name}.max_chars={source.max_chars}: expected 0, or at least "
                    f"min_chars={source.min_chars}, because no document has both lengths. Change "
                    "one of them."
                )
            if source.steps is not None:
                check_steps(f"corpus.sources.{name}.steps", source.steps)
            self._check_url(name, source)
            if source.no_loss_field and self.cleaning.dedup.paragraphs:
                raise InputError(
                    f"corpus.sources.{name}.no_loss_field={source.no_loss_field}: its ranges would "
                    "not fit after paragraphs are removed. Set corpus.cleaning.dedup.paragraphs="
                    "false, or remove the key."
                )

    def _check_url(self, name: str, source: SourceConfig) -> None:
        if source.url_field and source.format == "text":
            raise InputError(
                f"corpus.sources.{name}.url_field={source.url_field}: format=text has no columns. "
                "Use another format, or remove the key."
            )
        for step in self.steps_of(name):
            if step in READS_URL and source.url_column is None:
                raise InputError(
                    f"corpus.sources.{name}.url_field=null: the step '{step}' needs the URL of "
                    "each document. Name its column, or give the source steps without this one."
                )

    def steps_of(self, source: str) -> list[str]:
        """Returns the names of a source's cleaning steps, in order."""
        own = self.sources[source].steps
        return list(self.cleaning.steps if own is None else own)


def check_urls(corpus: CorpusConfig) -> None:
    """Raises InputError if URLs are to be compared, but no source has any."""
    if corpus.cleaning.dedup.url and not any(s.url_column for s in corpus.sources.values()):
        raise InputError(
            "corpus.cleaning.dedup.url=true: no source has a column with URLs. Set url_field of "
            "the sources that have one."
        )


@dataclass
class TokenizerConfig:
    """Configuration of the tokenizer.

    path: a tokenizer.json to use, or the Hugging Face folder that holds it. It must contain the
        three special tokens. Tokens that it adds to each text are left out. null trains a
        byte-level BPE instead.
    vocab_size: number of ids of a trained tokenizer.
    train_bytes: approximate number of bytes of the training split to train the tokenizer on.
    pad_token: special token for padding. null, here and for the next two, takes the token of that
        role from the tokenizer_config.json next to `path`.
    bos_token: special token for the beginning of a document.
    eos_token: special token for the end of a document.
    extra_tokens: more special tokens, such as those of fill in the middle. A trained tokenizer gets
        them; that of `path` must contain them. Text that spells one is encoded as ordinary text.
    """

    path: str | None = None
    vocab_size: int = 32000
    train_bytes: int = 100_000_000
    pad_token: str | None = "<pad>"
    bos_token: str | None = "<s>"
    eos_token: str | None = "</s>"
    extra_tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [self.pad_token, self.bos_token, self.eos_token]
        for token in self.extra_tokens:
            if not token or token in names:
                raise InputError(
                    f"tokenizer.extra_tokens={list(self.extra_tokens)}: '{token}' is empty, has "
                    "another role, or is listed twice. List each new token once."
                )
            names.append(token)

    def special_tokens(self) -> list[str]:
        """Returns the tokens for padding, beginning and end, none of which may be null."""
        tokens = [self.pad_token, self.bos_token, self.eos_token]
        return [token for token in tokens if token is not None]


@dataclass
class TokenizeConfig:
    """Configuration of `tokenize`.

    corpus: the corpus to tokenize.
    tokenizer: the tokenizer to train or use.
    out: output folder.
    workers: number of processes; 0 uses one per core.
    overwrite: replaces `out` if it is a corpus that Headwater made.
    add_to: folder of a prepared corpus, to which the documents of `corpus` are added as new shards.
        `out` is not used then, and neither is `tokenizer`, because the corpus has its own. null
        makes a new corpus.
    keep_index: stores digests and signatures of all documents in the corpus (about 190 bytes per
        document), with which documents that are added later are compared.
    encoder: `tokenizers`, or the faster `gigatoken`, whose ids are compared with those of
        `tokenizers` for some documents of every unit of work; null uses gigatoken if it is
        installed and supports the tokenizer.
    rank: rank of this job among the jobs that share the work on the same `out`; null takes it from
        the SLURM array or step. Without SLURM there is a single job.
    world: number of these jobs; null takes it from the SLURM array or step, too.
    """

    corpus: CorpusConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    out: str = MISSING
    workers: int = 0
    overwrite: bool = False
    add_to: str | None = None
    keep_index: bool = True
    encoder: str | None = None
    rank: int | None = None
    world: int | None = None

    def __post_init__(self) -> None:
        if self.encoder is not None:
            one_of("encoder", self.encoder, ENCODERS)
        if self.add_to is not None and self.overwrite:
            raise InputError(
                "overwrite=true: nothing is replaced with add_to. Remove one of the two keys."
            )
