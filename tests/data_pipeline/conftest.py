"""Fixtures: a small corpus of files of the standard library, and its tokenized shards."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from data_pipeline.store.manifest import load_manifest
from data_pipeline.text.corpus import CorpusConfig, SourceConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.tokenizing.tokenize import tokenize

MODULES = ("abc", "bisect", "calendar", "cmd", "copy", "csv", "fnmatch", "glob", "heapq", "json")


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """code/*.py, their docstrings as prose/*.txt, and a file that is not UTF-8."""
    library = Path(sysconfig.get_path("stdlib"))
    root = tmp_path_factory.mktemp("texts")
    files = [f for m in MODULES for f in (library / f"{m}.py", library / m / "__init__.py")]
    for file in filter(Path.is_file, files):
        text = file.read_text()
        name = file.stem if file.stem != "__init__" else file.parent.name
        for folder, ending, part in (("code", ".py", text), ("prose", ".txt", text[:1500])):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{name}{ending}").write_text(part)
    (root / "prose" / "unicode.txt").write_text("Grüße, Ελλάδα, 日本語, 🎉 and </s> as text.\n" * 9)
    (root / "prose" / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    shutil.copy(root / "prose" / "csv.txt", root / "prose" / "copied.txt")
    return root


@pytest.fixture(scope="session")
def configure():
    """Makes the config of a corpus of the text files in two folders."""

    def make(texts: Path, out: Path, workers: int = 1, **corpus) -> TokenizeConfig:
        sources = {
            "code": SourceConfig(paths=[str(texts / "code")], suffixes=[".py"]),
            "prose": SourceConfig(paths=[str(texts / "prose")]),
        }
        settings = {"held_out_fraction": 0.3, "shard_bytes": 30_000, "sources": sources, **corpus}
        return TokenizeConfig(
            corpus=CorpusConfig(name="texts", **settings),
            tokenizer=TokenizerConfig(vocab_size=400),
            out=str(out),
            workers=workers,
        )

    return make


@pytest.fixture(scope="session")
def tokenized(texts, configure, tmp_path_factory):
    """The manifest of the corpus, made by two processes."""
    out = tmp_path_factory.mktemp("tokenized") / "texts"
    tokenize(configure(texts, out, workers=2))
    return load_manifest(out)
