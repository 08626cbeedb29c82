"""A corpus as `conf/corpus/*.yaml` states it: named sources, and what is held out."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, field
from itertools import pairwise

from omegaconf import MISSING, OmegaConf

from conf.entry import CONF_DIR
from conf.errors import InputError, did_you_mean
from data_pipeline.cleaning.config import CleaningConfig, check_steps

FORMATS = ("text", "jsonl", "parquet", "huggingface")
ENCODERS = ("gigatoken", "tokenizers")


# `${python:stdlib}` in a YAML: a folder of the Python that runs, the same words on every machine.
def _python_folder(name: str) -> str:
    return sysconfig.get_paths()[{"site_packages": "purelib"}.get(name, name)]


# `${conf:corpus/...}`: a file that lies beside the YAMLs.
def _beside_the_configs(name: str) -> str:
    return str(CONF_DIR / name)


OmegaConf.register_new_resolver("python", _python_folder, replace=True)
OmegaConf.register_new_resolver("conf", _beside_the_configs, replace=True)


@dataclass
class SourceConfig:
    """One named source.

    format: `text` (a file is a document), `jsonl` (also .gz, .zst, .bz2 and .xz), `parquet`, or
        `huggingface` (`paths` are then a dataset's name or folder; rows are streamed).
    paths: files, folders (read recursively) or globs, local or of any fsspec URL (s3://...).
    suffixes: of files inside folders. exclude: globs on the path inside its folder.
    text_field: column of the text in rows. no_loss_field: column with [start, end) ranges of
        characters that the model reads but is not trained to predict; null for none.
    max_bytes: of text to take, 0 for all: of whole files, decided by a hash of their names, and of
        a Hugging Face dataset its first rows.
    min_file_bytes, max_file_bytes, max_line_length, min_letters: documents outside are left out
        and counted; max_* of 0 is no limit, min_letters is a share of the characters.
    max_malformed: rows of a file that may be no JSON, lack the text or not be UTF-8; they are kept
        aside with file and line. One more ends the command.
    steps: the cleaning steps of this source, null for those of the corpus.
    subset, split: of a Hugging Face dataset.
    """

    format: str = "text"
    paths: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    text_field: str = "text"
    no_loss_field: str | None = None
    max_bytes: int = 0
    min_file_bytes: int = 1
    max_file_bytes: int = 0
    max_line_length: int = 0
    min_letters: float = 0.0
    max_malformed: int = 100
    steps: list[str] | None = None
    subset: str | None = None
    split: str = "train"


@dataclass
class CorpusConfig:
    """held_out_fraction: share of the files (of the rows, where a source has rows) that is never
    trained on. seed: of that split and of the shuffle of documents. shard_bytes: text of a shard.
    fit: lengths in tokens, such as [2048, 4096]: no document that fits into the smallest of them
    that holds it is cut at a border of that length; padding fills the rest. Empty: documents are
    put end to end. cleaning: what is done to the documents of all sources.
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
            raise InputError("corpus.sources is empty: a corpus needs at least one named source.")
        if not 0 <= self.held_out_fraction < 1:
            raise InputError(
                f"corpus.held_out_fraction={self.held_out_fraction}, expected 0 or more and less "
                "than 1."
            )
        lengths = sorted(self.fit)
        if any(b % a for a, b in pairwise(lengths)) or (lengths and lengths[0] < 2):
            raise InputError(
                f"corpus.fit={list(self.fit)}, expected lengths of 2 tokens or more that divide "
                "one another, such as [2048, 4096]."
            )
        for name, source in self.sources.items():
            if source.format not in FORMATS:
                raise InputError(
                    f"corpus.sources.{name}.format={source.format} is not a format"
                    f"{did_you_mean(source.format, FORMATS)}."
                )
            if not source.paths:
                raise InputError(f"corpus.sources.{name}.paths is empty: name a file or folder.")
            if source.no_loss_field and source.format == "text":
                raise InputError(
                    f"corpus.sources.{name}.no_loss_field={source.no_loss_field} names a column, "
                    "but files of format text have none: use rows, or leave it out."
                )
            if source.steps is not None:
                check_steps(f"corpus.sources.{name}.steps", source.steps)

    def steps_of(self, source: str) -> list[str]:
        """The cleaning steps of a source, in their order."""
        own = self.sources[source].steps
        return list(self.cleaning.steps if own is None else own)


@dataclass
class TokenizerConfig:
    """path: a tokenizer.json to use, without what it adds to each text; null trains a byte-level
    BPE of `vocab_size` ids on `train_bytes` of the training split's text. The special tokens must
    be in a loaded one.
    """

    path: str | None = None
    vocab_size: int = 32000
    train_bytes: int = 100_000_000
    pad_token: str = "<pad>"
    bos_token: str = "<s>"
    eos_token: str = "</s>"


@dataclass
class TokenizeConfig:
    """out: the folder to make. workers: processes, 0 for as many as there are cores.
    overwrite: replaces `out`, if it is a corpus that Headwater made.

    encoder: `gigatoken`, checked against `tokenizers` on documents of every unit of work, or
    `tokenizers`; null for the first where it is installed.
    rank, world: this job's share of the work, for several jobs on one `out`; null for what SLURM
    says of its array or step, and for all the work elsewhere.
    """

    corpus: CorpusConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    out: str = MISSING
    workers: int = 0
    overwrite: bool = False
    encoder: str | None = None
    rank: int | None = None
    world: int | None = None

    def __post_init__(self) -> None:
        if self.encoder not in (None, *ENCODERS):
            raise InputError(
                f"encoder={self.encoder} is not an encoder{did_you_mean(self.encoder, ENCODERS)}."
            )
