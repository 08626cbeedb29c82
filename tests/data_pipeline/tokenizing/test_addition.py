"""Additions to a prepared corpus, from rows to the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conf.errors import InputError
from conf.output_kinds import CORPUS
from data_pipeline.cleaning.config import CleaningConfig, DedupOptions
from data_pipeline.inspection.cleaning import read_funnels, read_rejected
from data_pipeline.store.manifest import FILE, load_manifest
from data_pipeline.store.verify import VerifyConfig, verify
from data_pipeline.text.corpus import CorpusConfig, SourceConfig, TokenizeConfig, TokenizerConfig
from data_pipeline.tokenizing import addition
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.tokenize import tokenize
from tests.data_pipeline.dedup.test_duplicates import edited, text_of, write

OLD, NEW = range(30), range(20, 44)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Rows of a first crawl, and those of a second one that repeats a third of it."""
    root = tmp_path_factory.mktemp("texts")
    write(root / "old.jsonl", [text_of(seed) for seed in OLD] + [text_of(0)])
    near = [edited(text_of(seed), 0.01, seed) for seed in range(8)]
    write(root / "new.jsonl", [text_of(seed) for seed in NEW] + near)
    with (root / "new.jsonl").open("a") as file:
        file.write('{"text": 3}\n')
    write(root / "code.jsonl", [text_of(seed) for seed in (*range(40, 50), 1)])
    return root


def config_for(out, sources, add=False, fit=(), workers=1, keep_index=True, **dedup):
    """Returns a corpus of sources given by their files, in many units."""
    cleaning = CleaningConfig(dedup=DedupOptions(**{"minhash": True, **dedup}))
    return TokenizeConfig(
        corpus=CorpusConfig(
            name="grown",
            shard_bytes=9000,
            held_out_fraction=0.2,
            fit=list(fit),
            cleaning=cleaning,
            sources={
                name: SourceConfig("jsonl", [*map(str, files)]) for name, files in sources.items()
            },
        ),
        tokenizer=TokenizerConfig(vocab_size=400),
        out=str(out),
        add_to=str(out) if add else None,
        workers=workers,
        keep_index=keep_index,
    )


def first(out, texts, **options):
    return config_for(out, {"web": [texts / "old.jsonl"]}, **options)


def second(out, texts, **options):
    sources = {"web": [texts / "new.jsonl"], "code": [texts / "code.jsonl"]}
    return config_for(out, sources, add=True, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kept(manifest):
    return {
        source: sorted(
            document.text
            for split in ("train", "held_out")
            for document in read_documents(manifest, split, source)
        )
        for source in manifest.sources
    }


@pytest.fixture(scope="module")
def old(texts, tmp_path_factory):
    """The corpus before the addition."""
    out = tmp_path_factory.mktemp("old") / "out"
    tokenize(first(out, texts))
    return out


@pytest.fixture(scope="module")
def grown(old, texts, tmp_path_factory):
    """The corpus after it."""
    out = tmp_path_factory.mktemp("grown") / "out"
    shutil.copytree(old, out)
    tokenize(second(out, texts))
    return out


def test_only_the_manifest_of_the_old_corpus_changes(old, grown):
    before, after = files_of(old), files_of(grown)
    new = {name for name in after if before.get(name) != after[name]}
    assert before.keys() <= after.keys()
    assert {name for name in new if not name.startswith("additions/0002/")} == {FILE}
    manifest = load_manifest(grown)
    assert manifest.at_edition(1).fingerprint == load_manifest(old).fingerprint
    assert manifest.at_edition(1).splits == load_manifest(old).splits
    assert [entry["number"] for entry in manifest.editions] == [1, 2]
    assert not list(grown.parent.glob("*.partial"))


def test_documents_are_those_of_one_preparation(texts, grown, tmp_path):
    sources = {
        "web": [texts / "old.jsonl", texts / "new.jsonl"],
        "code": [texts / "code.jsonl"],
    }
    whole = config_for(tmp_path / "out", sources)
    tokenize(whole)
    assert kept(load_manifest(grown)) == kept(load_manifest(whole.out))
    counts = load_manifest(grown).sources
    assert counts["web"]["files"] == 2
    assert counts["web"]["exact_duplicates"] == 11
    assert counts["web"]["near_duplicates"] == 8
    assert counts["code"]["documents"] == 6


def test_it_is_verified_and_inspected_like_any_corpus(grown, tmp_path):
    verify(VerifyConfig(str(grown), megatron=False))
    funnels = {funnel.source: funnel for funnel in read_funnels(grown)}
    assert funnels["web"].documents == 31 + 32
    assert funnels["web"].kept_documents == 44
    assert [(rejected.source, rejected.count) for rejected in read_rejected(grown)] == [("web", 1)]
    assert CORPUS.owns is not None
    assert all(map(CORPUS.owns(grown), files_of(grown)))
    damaged = tmp_path / "out"
    shutil.copytree(grown, damaged)
    (damaged / "additions/0002/index/000001.keys").write_bytes(b"")
    (damaged / "index/000001.npy").unlink()
    (damaged / "additions/0002/train/other.bin").write_bytes(b"")
    with pytest.raises(InputError, match="found 3 problems in 3 files"):
        verify(VerifyConfig(str(damaged), megatron=False))


def test_the_same_files_are_added_once(grown, texts, capsys):
    before = files_of(grown)
    tokenize(second(grown, texts))
    assert "already has these documents" in capsys.readouterr().out
    tokenize(first(grown, texts))
    assert "is up to date" in capsys.readouterr().out
    # Files that the corpus was made from are recognized one by one.
    both = [texts / "old.jsonl", texts / "new.jsonl"]
    tokenize(config_for(grown, {"web": both}, add=True))
    assert "already has these documents" in capsys.readouterr().out
    assert files_of(grown) == before


def test_only_files_that_are_new_are_read(old, texts, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    both = [texts / "old.jsonl", texts / "new.jsonl"]
    tokenize(config_for(out, {"web": both}, add=True, exact=False, minhash=False))
    manifest = load_manifest(out)
    assert manifest.editions[1]["sources"]["web"]["files"] == 1
    assert manifest.sources["web"]["documents"] == len(OLD) + len(NEW) + 8


@pytest.mark.parametrize(("workers", "jobs"), [(2, 1), (1, 3)])
def test_any_number_of_processes_tasks_and_jobs_writes_the_same(
    workers, jobs, old, grown, texts, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    calls = 0
    while load_manifest(out).edition_count == 1:
        for rank in range(jobs):
            config = second(out, texts, workers=workers, task_bytes=3000)
            if jobs > 1:
                config.rank, config.world = rank, jobs
            tokenize(config)
        calls += 1
        assert calls < 7
    assert files_of(out) == files_of(grown)


def test_several_additions(texts, old, grown, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    tokenize(config_for(out, {"web": [texts / "new.jsonl"]}, add=True))
    tokenize(config_for(out, {"code": [texts / "code.jsonl"]}, add=True))
    manifest = load_manifest(out)
    assert manifest.edition_count == 3
    assert kept(manifest) == kept(load_manifest(grown))
    verify(VerifyConfig(str(out), megatron=False))


def test_an_addition_of_copies_alone(old, texts, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    write(tmp_path / "copies.jsonl", [text_of(seed) for seed in OLD])
    config = config_for(
        out, {"web": [tmp_path / "copies.jsonl"], "x": [tmp_path / "copies.jsonl"]}, add=True
    )
    tokenize(config)
    assert "nothing is added to source 'x'" in " ".join(capsys.readouterr().out.split())
    manifest = load_manifest(out)
    assert manifest.fingerprint == load_manifest(old).fingerprint
    assert manifest.editions[1]["sources"]["web"]["exact_duplicates"] == len(OLD)
    tokenize(config)
    assert load_manifest(out) == manifest


def test_killed_while_it_writes_a_file_of_the_index(old, grown, texts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(old, out)

    def killed(folder, *_):
        (folder / "index" / ".index.json.123.abc").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.dedup.index.write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(second(out, texts))
    tokenize(second(out, texts))
    assert files_of(out) == files_of(grown)


@pytest.mark.parametrize("step", ["record_addition", "rename", "manifest", "remove"])
def test_killed_in_the_last_steps(step, old, grown, texts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(old, out)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "record_addition":
            patch.setattr("data_pipeline.tokenizing.tokenize.record_addition", killed)
        elif step == "rename":
            patch.setattr(addition, "sync", killed)
        elif step == "manifest":
            write_text = addition.write_text
            patch.setattr(
                addition,
                "write_text",
                lambda path, text: killed() if path.name == FILE else write_text(path, text),
            )
        else:
            patch.setattr("data_pipeline.tokenizing.work.WorkFolder.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(second(out, texts))
    now = load_manifest(out)
    assert now.at_edition(1).fingerprint == load_manifest(old).fingerprint
    assert now.edition_count == (2 if step == "remove" else 1)
    verify(VerifyConfig(str(out), megatron=False))
    tokenize(second(out, texts))
    assert files_of(out) == files_of(grown)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_job_that_starts_while_another_one_ends(old, grown, texts, tmp_path, monkeypatch):
    """The job has read the old manifest, and gets the lock when the addition is complete."""
    out = tmp_path / "out"
    shutil.copytree(old, out)
    listed: list[object] = []
    plan_units = addition.plan_units

    def finish(*arguments):
        if not listed:
            listed.append(arguments)
            tokenize(second(out, texts))
        return plan_units(*arguments)

    monkeypatch.setattr(addition, "plan_units", finish)
    tokenize(second(out, texts))
    assert files_of(out) == files_of(grown)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_addition_first_finishes_one_that_is_complete(
    old, grown, texts, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(old, out)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addition, "sync_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(second(out, texts))
    write(tmp_path / "third.jsonl", [text_of(seed) for seed in range(60, 70)])
    tokenize(config_for(out, {"web": [tmp_path / "third.jsonl"]}, add=True))
    manifest = load_manifest(out)
    assert manifest.edition_count == 3
    assert manifest.at_edition(2).fingerprint == load_manifest(grown).fingerprint


def test_documents_of_other_corpora_are_dropped(old, texts, tmp_path):
    out = tmp_path / "out"
    other = tmp_path / "other"
    (other / "index").mkdir(parents=True)  # nothing else of the other corpus is needed
    for file in (FILE, *(f"index/{path.name}" for path in (old / "index").iterdir())):
        shutil.copy(old / file, other / file)
    config = config_for(out, {"web": [texts / "new.jsonl"]}, against=[str(other)])
    tokenize(config)
    assert kept(load_manifest(out))["web"] == sorted(text_of(seed) for seed in range(30, 44))
    # The corpus with the addition is made from both.
    shutil.copytree(old, tmp_path / "base")
    config = second(tmp_path / "base", texts, against=[str(out)])
    tokenize(config)
    added = kept(load_manifest(tmp_path / "base"))
    assert added["web"] == sorted(text_of(seed) for seed in OLD)
    assert added["code"] == sorted(text_of(seed) for seed in range(44, 50))


def test_without_an_index(texts, tmp_path):
    out = tmp_path / "out"
    tokenize(first(out, texts, keep_index=False))
    assert not (out / "index").exists()
    with pytest.raises(InputError, match=r"add_to=.*index does not exist .* keep_index=true"):
        tokenize(second(out, texts))
    tokenize(second(out, texts, exact=False, minhash=False))
    assert load_manifest(out).sources["web"]["documents"] == len(OLD) + len(NEW) + 8


def test_what_cannot_be_added_is_refused(old, texts, tmp_path):
    def refused(match, **options):
        before = files_of(old)
        with pytest.raises(InputError, match=match):
            tokenize(second(old, texts, **options))
        assert files_of(old) == before
        assert not list(old.parent.glob("*.partial"))

    refused(r"corpus.fit=\[64\]: the documents of .* were packed with fit=\[\]", fit=[64])
    refused("index was made with minhash and n_grams=5 .*, but .* n_grams=7", n_grams=7)
    refused("made with across_sources=true, but .* across_sources=false", across_sources=False)
    refused(r"against: s3://b/c is remote", against=["s3://b/c"])
    config = second(old, texts)
    config.add_to = "s3://bucket/web"
    with pytest.raises(InputError, match="add_to=s3://bucket/web: the corpus is remote"):
        tokenize(config)
    config = first(tmp_path / "other", texts)
    config.tokenizer.vocab_size = 300
    tokenize(config)
    config = second(old, texts)
    config.tokenizer.path = str(tmp_path / "other" / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer.path=.* made with another tokenizer"):
        tokenize(config)
    fields = json.loads((tmp_path / "other" / FILE).read_text())
    (tmp_path / "other" / FILE).write_text(json.dumps({**fields, "origin": "import"}))
    with pytest.raises(InputError, match="its shards were imported"):
        tokenize(second(tmp_path / "other", texts))
    with pytest.raises(InputError, match="overwrite=true: nothing is replaced with add_to"):
        TokenizeConfig(add_to=str(old), overwrite=True)


def test_the_tokenizer_of_the_corpus_may_be_named(old, grown, texts, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(old, out)
    config = second(out, texts)
    config.tokenizer.path = str(shutil.copy(old / "tokenizer.json", tmp_path / "copy.json"))
    tokenize(config)
    assert files_of(out) == files_of(grown)
