"""The commands as a user types them: corpora from a YAML alone, and invalid input."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from conf.entry import CONF_DIR
from data_pipeline.store.manifest import load_manifest
from data_pipeline.tokenizing.documents import read_documents
from tests.conftest import fresh_command
from tests.data_pipeline.text.test_archives import needs_web, page

TEXTS = [f"Document {number} tells of {'words and ' * number}its end." for number in range(60)]
WORDS = """
the of and with that this from there because river meadow mill bridge farmer village harbour
forest winter teacher letter garden belongs returns listens travels answers compares speaks leads
grows moves quiet narrow early distant patient gentle bright ancient slowly often never between
behind along through always morning evening window kitchen market history
"""


def write_text_files(folder):
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder


def write_jsonl(folder):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "rows.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return folder / "*.jsonl.zst"


def write_parquet(folder):
    pq.write_table(pa.table({"text": TEXTS}), folder / "rows.parquet")
    return folder / "*.parquet"


def write_huggingface(folder):
    write_parquet(folder)
    return folder


CORPORA = {
    "text_files": ("text", write_text_files),
    "jsonl": ("web", write_jsonl),
    "parquet": ("web", write_parquet),
    "huggingface": ("web", write_huggingface),
}


def test_every_corpus_has_its_test():
    assert {path.stem for path in (CONF_DIR / "corpus").glob("*.yaml")} == {
        *CORPORA,
        "long_context",  # in tests/pretrain/test_long_context.py
        "python_docs",  # the demo's
        "web",  # below
        "web_archives",
    }


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_corpus_of_your_own(corpus, command, tmp_path):
    source, write = CORPORA[corpus]
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in")
    run = fresh_command if corpus == next(iter(CORPORA)) else command
    done = run(
        *("data_pipeline", "tokenize", f"corpus={corpus}", f"out={tmp_path / 'out'}"),
        f"corpus.sources.{source}.paths=['{path}']",
        *("corpus.held_out_fraction=0.2", "tokenizer.vocab_size=300", "workers=1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # Megatron's page of warnings is not shown
    assert "bytes/token" in done.stdout
    manifest = load_manifest(tmp_path / "out")
    found = [
        document.text
        for split in ("train", "held_out")
        for document in read_documents(manifest, split, source)
    ]
    assert sorted(found) == sorted(TEXTS)


def test_web_text_is_cleaned(command, tmp_path):
    """One page for each step that it must drop, among pages of prose."""
    pages = [prose(seed) for seed in range(20)]
    bad = {
        "gopher_quality": "\n".join(pages[0].split("\n")[:3]),
        "gopher_repetition": "The same line of it once again and again.\n" * 40,
        "c4": pages[0] + "\nLorem ipsum dolor sit amet is where the text should be.",
        "exact_duplicates": pages[1],
        "near_duplicates": pages[2] + " The end.",
    }
    address = pages[3] + "\nWrite to reader@example.org for all that you want to know of it."
    rows = [*pages[:3], *pages[4:], address, *bad.values()]
    source = tmp_path / "pages.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    done = command(
        *("data_pipeline", "tokenize", "corpus=web", f"out={tmp_path / 'out'}"),
        f"corpus.sources.web.paths=[{source}]",
        *("corpus.held_out_fraction=0.2", "tokenizer.vocab_size=300", "workers=1"),
    )
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(tmp_path / "out")
    found = [
        document.text
        for split in ("train", "held_out")
        for document in read_documents(manifest, split, "web")
    ]
    masked = address.replace("reader@example.org", "email@example.com")
    assert sorted(found) == sorted([*pages[:3], *pages[4:], masked])
    report = json.loads((tmp_path / "out" / "cleaning.json").read_text())
    steps = report["sources"]["web"]["steps"]
    assert {
        s["name"]: s["dropped_documents"] for s in steps if s["dropped_documents"]
    } == dict.fromkeys(bad, 1)


@needs_web
def test_pages_of_an_archive(command, tmp_path):
    """The same address twice is one document."""
    pages = [prose(seed) for seed in range(8)]
    records = [
        page(url, f"<html><body><article><p>{text}</p></article></body></html>".encode())
        for text, url in [*((text, number) for number, text in enumerate(pages)), (prose(9), 3)]
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    done = command(
        *("data_pipeline", "tokenize", "corpus=web_archives", f"out={tmp_path / 'out'}"),
        f"corpus.sources.crawl.paths=[{tmp_path / 'a.warc.gz'}]",
        *("corpus.held_out_fraction=0.2", "tokenizer.vocab_size=300", "workers=1"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "cleaning.json").read_text())
    steps = report["sources"]["crawl"]["steps"]
    dropped = {s["name"]: s["dropped_documents"] for s in steps if s["dropped_documents"]}
    assert dropped == {"url_duplicates": 1}
    manifest = load_manifest(tmp_path / "out")
    found = [
        document.text
        for split in ("train", "held_out")
        for document in read_documents(manifest, split, "crawl")
    ]
    assert sorted(text.split() for text in found) == sorted(text.split() for text in pages)


def prose(seed: int) -> str:
    """Returns a page that passes every rule, with words in an order that depends on the seed."""
    words = random.Random(seed)
    lines = [" ".join(["And", *words.sample(WORDS.split(), 13), "with that."]) for _ in range(7)]
    return "\n".join(lines)


def test_the_demo_corpus_finds_this_python(command):
    done = command("data_pipeline", "tokenize", "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    assert sysconfig.get_path("stdlib") in done.stdout
    assert sysconfig.get_path("purelib") in done.stdout


@pytest.mark.parametrize("tokenizer", sorted(p.stem for p in (CONF_DIR / "tokenizer").iterdir()))
def test_every_tokenizer_composes(tokenizer, command):
    settings = ["tokenizer.path=x"] if tokenizer == "load" else []
    done = command("data_pipeline", "tokenize", f"tokenizer={tokenizer}", *settings, "--cfg", "job")
    assert done.returncode == 0, done.stderr


BAD = {
    "path missing": (
        ["tokenize", "corpus=text_files", "corpus.sources.text.paths=[/nowhere]"],
        "corpus.sources.text.paths: /nowhere does not exist. Give a file, folder or glob",
    ),
    "path not given": (
        ["tokenize", "corpus=jsonl"],
        "corpus.sources.web.paths is empty. Give files or folders",
    ),
    "unknown key": (
        ["tokenize", "corpus.held_out_fracton=0.1"],
        "corpus.held_out_fracton is not a key of this config (did you mean",
    ),
    "wrong type": (["tokenize", "workers=many"], "workers: value 'many'"),
    "out of range": (
        ["tokenize", "corpus.held_out_fraction=2"],
        "corpus.held_out_fraction=2.0: expected 0 or more and less than 1",
    ),
    "unknown corpus": (
        ["tokenize", "corpus=python_doc"],
        "corpus=python_doc: unknown choice (did you mean 'python_docs'?)",
    ),
    "no corpus folder": (["pairs", "corpus=nowhere", "out=x"], "nowhere/manifest.json does not"),
    "no run": (["where", "run=nowhere", "step=1"], "run=nowhere: ledger.jsonl is missing"),
    "no question": (["where", "run=nowhere"], "Give step=<number>, doc=<document> or"),
    "unknown command": (["tokenise"], "unknown command 'tokenise' (did you mean"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence(case, command, tmp_path):
    arguments, sentence = BAD[case]
    out = [f"out={tmp_path / 'out'}"] if arguments[0] == "tokenize" else []
    done = command("data_pipeline", *arguments, *out)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not Path(tmp_path / "out").exists()


def test_too_many_damaged_rows_end_the_command_with_the_first(command, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"text"\n')
    done = command(
        *("data_pipeline", "tokenize", "corpus=jsonl", f"out={tmp_path / 'out'}", "workers=2"),
        f"corpus.sources.web.paths=[{tmp_path / 'rows.jsonl'}]",
        "corpus.sources.web.max_malformed=0",
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "more malformed rows. The first one is rows.jsonl, row 2" in line
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
