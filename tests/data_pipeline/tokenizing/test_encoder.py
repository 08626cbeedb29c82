"""gigatoken and tokenizers give the same ids, and differences are encoded with tokenizers."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.store.manifest import load_manifest
from data_pipeline.tokenizing import encoder as module
from data_pipeline.tokenizing.documents import read_documents
from data_pipeline.tokenizing.encoder import Encoder, EncoderDiffers, choose_encoder
from data_pipeline.tokenizing.tokenize import tokenize

EDGE = [
    "",
    " ",
    "</s>",
    "a </s> b <pad><s>",
    "🎉\u200b\ufeff",
    "x" * 5000,
    "\r\n\t",
    "Grüße 日本語",
]


@pytest.fixture(scope="module")
def path(tokenized):
    return tokenized.tokenizer_path


def split(encoded):
    ends = np.cumsum(encoded.lengths)
    return [
        encoded.ids[end - n : end].tolist() for end, n in zip(ends, encoded.lengths, strict=True)
    ]


def test_both_give_the_same_ids(path):
    library = Path(sysconfig.get_path("stdlib"))
    texts = EDGE + [file.read_text() for file in sorted((library / "json").glob("*.py"))]
    reference, fast = Encoder(path, "tokenizers"), Encoder(path, "gigatoken")
    expected = [reference.reference.encode(text).ids for text in texts]
    assert split(reference.encode(texts)) == expected
    assert split(fast.encode(texts)) == expected
    assert split(fast.encode([])) == []
    assert fast.compared >= 4


def test_text_never_becomes_a_special_token(path, tokenized):
    special = {tokenized.tokenizer[f"{name}_id"] for name in ("pad", "bos", "eos")}
    for name in ("tokenizers", "gigatoken"):
        assert not special & set(Encoder(path, name).encode(EDGE).ids.tolist())


class Wrong:
    """A gigatoken that gets the first id wrong."""

    def __init__(self, real):
        self.real = real

    def encode_batch(self, texts):
        array = self.real.encode_batch(texts)
        ids = np.asarray(array.layout.content.data)
        ids[:1] = 5
        return array


def test_a_difference_is_found_and_the_unit_encoded_with_the_reference(
    path, texts, configure, tmp_path, tokenized, monkeypatch, capsys
):
    real = module._load_gigatoken(str(path))
    monkeypatch.setattr(module, "_load_gigatoken", lambda path: Wrong(real))
    with pytest.raises(EncoderDiffers):
        Encoder(path, "gigatoken").encode(["the name of the file is not the same. " * 40, "self"])
    config = configure(texts, tmp_path / "out", workers=1)
    config.tokenizer.path = str(path)
    tokenize(config)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.encoder["units_again"] > 0
    assert "and tokenizers gave different ids in" in " ".join(capsys.readouterr().out.split())
    for source in ("code", "prose"):
        ours, theirs = (
            {d.file: d.text for d in read_documents(m, "train", source)}
            for m in (manifest, tokenized)
        )
        assert ours == theirs


def test_every_document_with_masked_ranges_is_compared(path, monkeypatch):
    text = "the name of the file is not the same. " * 40
    encoder = Encoder(path, "gigatoken")
    encoder.encode(["a"] * (module.CHECK_FIRST + 1))
    assert encoder.no_loss_tokens(text, [(0, 8)]).sum() > 0
    encoder._fast = Wrong(encoder._fast)
    encoder.encode([text])  # neither among the first documents nor the thousandth
    with pytest.raises(EncoderDiffers):
        encoder.no_loss_tokens(text, [(0, 8)])


def test_the_manifest_names_the_encoder(tokenized, texts, configure, tmp_path):
    assert tokenized.encoder["name"].startswith("gigatoken ")
    assert tokenized.encoder["documents_checked"] > 0
    config = configure(texts, tmp_path / "out")
    config.encoder = "tokenizers"
    tokenize(config)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.encoder["name"].startswith("tokenizers ")
    assert manifest.fingerprint == tokenized.fingerprint


def test_without_gigatoken_the_reference_is_used_and_reported(
    texts, configure, tmp_path, tokenized, monkeypatch, capsys
):
    def missing(path):
        raise ImportError

    monkeypatch.setattr(module, "_load_gigatoken", missing)
    assert choose_encoder(None, tokenized.tokenizer_path)[0] == "tokenizers"
    tokenize(configure(texts, tmp_path / "out"))
    said = " ".join(capsys.readouterr().out.split())
    assert "many times slower than gigatoken: gigatoken is not installed" in said
    assert load_manifest(tmp_path / "out").fingerprint == tokenized.fingerprint


def test_an_unknown_encoder_is_refused(texts, configure, tmp_path):
    config = configure(texts, tmp_path / "out")
    config.encoder = "gigatokens"
    with pytest.raises(InputError, match=r"encoder=gigatokens: .*did you mean 'gigatoken'"):
        config.__post_init__()
