"""A corpus as `conf/corpus/*.yaml` states it: named sources, and what is held out."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, field

from omegaconf import MISSING, OmegaConf

from conf.errors import InputError, did_you_mean

FORMATS = ("text", "jsonl", "parquet", "huggingface")


# `${python:stdlib}` in a YAML: a folder of the Python that runs, the same words on every machine.
def _python_folder(name: str) -> str:
    return sysconfig.get_paths()[{"site_packages": "purelib"}.get(name, name)]


OmegaConf.register_new_resolver("python", _python_folder, replace=True)


@dataclass
class SourceConfig:
    """One named source.

    format: `text` (a file is a document), `jsonl` (also .gz and .zst), `parquet`, or
        `huggingface` (`paths` are then a dataset's name or folder; rows are streamed).
    paths: files, folders (read recursively) or globs. suffixes: of files inside folders.
    exclude: globs on the path inside its folder.
    text_field: column of the text in rows.
    max_bytes: of text to take, 0 for all; which files is decided by a hash of their names.
    min_file_bytes, max_file_bytes, max_line_length, min_letters: documents outside are left out
        and counted; max_* of 0 is no limit, min_letters is a share of the characters.
    subset, split: of a Hugging Face dataset.
    """

    format: str = "text"
    paths: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    text_field: str = "text"
    max_bytes: int = 0
    min_file_bytes: int = 1
    max_file_bytes: int = 0
    max_line_length: int = 0
    min_letters: float = 0.0
    subset: str | None = None
    split: str = "train"


@dataclass
class CorpusConfig:
    """held_out_fraction: share of the files (of the rows, where a source has rows) that is never
    trained on. seed: of that split and of the shuffle of documents. shard_bytes: text of a shard.
    """

    name: str = MISSING
    seed: int = 0
    held_out_fraction: float = 0.01
    shard_bytes: int = 64_000_000
    sources: dict[str, SourceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("corpus.sources is empty: a corpus needs at least one named source.")
        if not 0 < self.held_out_fraction < 1:
            raise InputError(
                f"corpus.held_out_fraction={self.held_out_fraction}, expected more than 0 and less "
                "than 1."
            )
        for name, source in self.sources.items():
            if source.format not in FORMATS:
                raise InputError(
                    f"corpus.sources.{name}.format={source.format} is not a format"
                    f"{did_you_mean(source.format, FORMATS)}."
                )
            if not source.paths:
                raise InputError(f"corpus.sources.{name}.paths is empty: name a file or folder.")


@dataclass
class TokenizerConfig:
    """path: a tokenizer.json to use as it is; null trains a byte-level BPE of `vocab_size` ids on
    `train_bytes` of the training split's text. The special tokens must be in a loaded one.
    """

    path: str | None = None
    vocab_size: int = 32000
    train_bytes: int = 100_000_000
    pad_token: str = "<pad>"
    bos_token: str = "<s>"
    eos_token: str = "</s>"


@dataclass
class TokenizeConfig:
    """out: the folder to make; workers: processes, 0 for as many as there are cores."""

    corpus: CorpusConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    out: str = MISSING
    workers: int = 0
    overwrite: bool = False
