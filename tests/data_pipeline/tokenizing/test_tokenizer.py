"""Tokenizers keep all text, and every id's bytes are counted."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from conf.errors import InputError
from data_pipeline.store.manifest import tokenizer_fingerprint
from data_pipeline.text.corpus import TokenizerConfig
from data_pipeline.tokenizing.tokenizer import (
    MAX_WORD_BYTES,
    check_tokenizer,
    document_tokenizer,
    load_tokenizer,
    settle_tokenizer,
    special_ids,
    token_bytes,
    train_tokenizer,
)

HARD = "Grüße, 日本語 🎉👩‍👩‍👧 \x00\u200b\ufeff  \n\t<s>a</s><pad> ▁_ é e\u0301"


def saved(tokenizer, folder):
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return load_tokenizer(path)


def byte_fallback() -> Tokenizer:
    """Llama-2's layout: `▁` for spaces, ids of single bytes for what has no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "é", "日本", *"abcdefghijklmnopqrstuvwxyz", "th", "the"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(
        vocabulary, [("t", "h"), ("th", "e")], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    texts = ["the cat and the hat, the dog and the log. 日本語 Grüße\n" * 20]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=320))
    return saved(tokenizer, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    return saved(byte_fallback(), tmp_path_factory.mktemp("fallback"))


@pytest.mark.parametrize("kind", ["trained", "fallback"])
@pytest.mark.parametrize("text", [HARD, "the cat", " \n ", "é", "日本 日本"])
def test_bytes_of_the_ids_sum_to_those_of_the_text(kind, text, request):
    tokenizer = request.getfixturevalue(kind)
    text = text.replace("▁", "") if kind == "fallback" else text  # there it means a space
    ids = tokenizer.encode(text).ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_survives(trained, text):
    ids = trained.encode(text).ids
    assert trained.decode(ids, skip_special_tokens=False) == text
    assert token_bytes(trained)[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", ["trained", "fallback"])
def test_text_that_spells_a_special_token_is_plain_text(kind, request):
    tokenizer = request.getfixturevalue(kind)
    special = {tokenizer.token_to_id(piece) for piece in ("<s>", "</s>")}
    assert not special & set(tokenizer.encode("a </s> b<s>").ids)


def test_special_tokens_stand_for_no_bytes(trained):
    sizes = token_bytes(trained)
    assert sizes.dtype == np.uint16
    assert sizes.shape == (trained.get_vocab_size(),)
    ids = special_ids(trained, TokenizerConfig())
    assert ids == {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    assert sizes[:3].tolist() == [0, 0, 0]
    assert sizes[3:].min() == 1


def test_added_tokens_that_are_not_special_stand_for_their_text(trained, tmp_path):
    trained.save(str(tmp_path / "copy.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "copy.json"))
    tokenizer.add_tokens([AddedToken("日本é", normalized=False)])
    tokenizer = saved(tokenizer, tmp_path)
    text = "the 日本é cat"
    ids = tokenizer.encode(text).ids
    assert tokenizer.token_to_id("日本é") in ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_padding_and_truncation_of_a_loaded_tokenizer_are_off(trained, tmp_path):
    trained.save(str(tmp_path / "copy.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "copy.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    loaded = saved(tokenizer, tmp_path)
    assert loaded.encode("the cat and the hat").ids == trained.encode("the cat and the hat").ids


POST = {
    "template": processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    ),
    "bert": processors.BertProcessing(("</s>", 2), ("<s>", 1)),
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
}
POST["sequence"] = processors.Sequence([processors.ByteLevel(trim_offsets=False), POST["template"]])
ALL = ("<pad>", "<s>", "</s>")


@pytest.fixture
def stored(trained, tmp_path):
    """Saves the trained tokenizer with changes to its JSON."""

    def make(post=None, **changes):
        path = tmp_path / "given.json"
        tokenizer = Tokenizer.from_str(trained.to_str())
        if post:
            tokenizer.post_processor = POST[post]
        path.write_text(json.dumps(json.loads(tokenizer.to_str()) | changes))
        return path

    return make


@pytest.mark.parametrize("post", POST)
def test_what_a_tokenizer_adds_to_texts_is_taken_out(stored, trained, post):
    path = stored(post)
    ids = Tokenizer.from_file(str(path)).encode("the cat").ids
    assert ids[0] == 1
    content, added = document_tokenizer(path, ALL)
    assert added == (["<s>", "</s>"] if post in ("bert", "roberta") else ["<s>"])
    assert Tokenizer.from_str(content).encode("the cat").ids == trained.encode("the cat").ids
    kept = json.loads(content)["post_processor"]
    assert (kept["processors"][0]["type"] if kept else None) == (
        "ByteLevel" if post == "sequence" else None
    )
    content, added = document_tokenizer(path, ALL, keep_added=True)
    assert (content, added) == (path.read_text(), [])


def test_a_tokenizer_that_encodes_as_documents_are_is_left_as_it_is(stored):
    path = stored()
    assert document_tokenizer(path, ALL) == (path.read_text(), [])


def test_what_cuts_and_pads_texts_is_taken_out(stored, trained):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    cutting = json.loads(tokenizer.to_str())
    path = stored(truncation=cutting["truncation"], padding=cutting["padding"])
    content, _ = document_tokenizer(path, ALL)
    ids = trained.encode("the cat and the hat").ids
    assert Tokenizer.from_str(content).encode("the cat and the hat").ids == ids


@pytest.mark.parametrize("missing", [ALL, ("<pad>",), ("</s>",)])
@pytest.mark.parametrize("how", ["missing", "not special"])
def test_named_tokens_are_special_ones(stored, trained, missing, how):
    tokens = json.loads(trained.to_str())["added_tokens"]
    for token in tokens:
        token["special"] = token["content"] not in missing
    if how == "missing":
        tokens = [token for token in tokens if token["special"]]
    path = stored(added_tokens=tokens)
    check_tokenizer(TokenizerConfig(path=str(path)))
    content, _ = document_tokenizer(path, ALL)
    path.write_text(content)
    tokenizer = load_tokenizer(path)
    assert special_ids(tokenizer, TokenizerConfig()) == {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    assert token_bytes(tokenizer)[:3].tolist() == [0, 0, 0]
    assert tokenizer.encode("a</s><s><pad>").ids == trained.encode("a</s><s><pad>").ids
    assert tokenizer.decode([0, 1, 2, *trained.encode("the").ids]) == "the"


@pytest.mark.parametrize("role", ["pad", "bos", "eos"])
@pytest.mark.parametrize("piece", ["the", "Ġthe", "a"])
def test_a_special_token_that_is_ordinary_text_is_refused(stored, role, piece):
    config = TokenizerConfig(path=str(stored()))
    setattr(config, f"{role}_token", piece)
    with pytest.raises(
        InputError, match=rf"{role}_token={piece}: this token of .* also encodes ordinary text"
    ):
        check_tokenizer(config)


def test_tokens_may_have_several_roles(stored):
    path = str(stored())
    check_tokenizer(TokenizerConfig(path, pad_token="</s>", bos_token="</s>", eos_token="</s>"))


LONG = {
    "a letter": "A" * 300_000,
    "newlines": "\n" * 300_000,
    "spaces": " " * 300_000,
    "letters": "".join(random.Random(0).choices("ACGT", k=300_000)),
    "digits": "".join(random.Random(0).choices("0123456789", k=300_000)),
    "signs": "=" * 300_000,
    "han": "的" * 100_000,
    "emoji": "🎉" * 75_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_words_are_cut_in_training(kind):
    """A run without a break trains the same tokenizer as its parts: what is timed is one word."""
    config = TokenizerConfig(vocab_size=300)
    text = LONG[kind]
    tokenizer = train_tokenizer(["the cat", text], config)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    longest = max(map(len, tokenizer.get_vocab()))
    assert longest <= MAX_WORD_BYTES


def test_words_that_are_not_long_train_the_same_tokenizer(monkeypatch):
    texts = [
        "the cat and the hat. 日本語の文章。 Grüße 🎉\n\n" * 20,
        "x" * 1999,
        "=" * 2000,
        "é" * 999,
    ]
    config = TokenizerConfig(vocab_size=400)
    cut = train_tokenizer(texts, config).to_str()
    monkeypatch.setattr("data_pipeline.tokenizing.tokenizer.MAX_WORD_BYTES", 10**9)
    assert train_tokenizer(texts, config).to_str() == cut
    monkeypatch.setattr("data_pipeline.tokenizing.tokenizer.MAX_WORD_BYTES", 4)
    assert train_tokenizer(texts, config).to_str() != cut


def test_the_fingerprint_is_of_the_content(tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text('{"a": 1, "b": [2, 3]}')
    second.write_text('{"b":[2,3],\n "a":1}')
    third.write_text('{"a": 1, "b": [3, 2]}')
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(third)


def test_bad_tokenizers_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size=258: expected 259 or more"):
        train_tokenizer([], TokenizerConfig(vocab_size=258))
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "bad.json")
    (tmp_path / "cut.json").write_text('{"a')
    with pytest.raises(InputError, match=r"cut\.json is not valid JSON"):
        tokenizer_fingerprint(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"tokenizer\.eos_token=<end>: not in the vocabulary"):
        special_ids(trained, TokenizerConfig(path="x", eos_token="<end>"))


EXTRA = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def test_extra_tokens_are_special_and_follow_the_others(tmp_path):
    config = TokenizerConfig(vocab_size=270, extra_tokens=EXTRA)
    tokenizer = train_tokenizer(["def f(x): return x"] * 9, config)
    assert [tokenizer.token_to_id(token) for token in EXTRA] == [3, 4, 5]
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    ids = load_tokenizer(path).encode(f"a{EXTRA[0]}b").ids
    assert 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a{EXTRA[0]}b"
    check_tokenizer(TokenizerConfig(str(path), extra_tokens=EXTRA))
    with pytest.raises(InputError, match=r"extra_tokens=\['<x>'\]: '<x>' is not in the vocabulary"):
        check_tokenizer(TokenizerConfig(str(path), extra_tokens=["<x>"]))
    with pytest.raises(InputError, match=r"'</s>' is empty, has another role, or is listed twice"):
        TokenizerConfig(extra_tokens=["</s>"])
    with pytest.raises(InputError, match="vocab_size=261: expected 262 or more"):
        check_tokenizer(TokenizerConfig(vocab_size=261, extra_tokens=EXTRA))


@pytest.mark.parametrize("of_folder", [True, False])
def test_special_tokens_are_read_next_to_the_tokenizer(stored, of_folder):
    path = stored()
    path = path.rename(path.with_name("tokenizer.json"))
    stated = {
        "eos_token": {"content": "</s>", "lstrip": False},
        "unk_token": "<pad>",
        "bos_token": None,
    }
    (path.parent / "tokenizer_config.json").write_text(json.dumps(stated))
    given = TokenizerConfig(str(path.parent if of_folder else path), 8, 8, None, None, None)
    found = settle_tokenizer(given)
    assert found == TokenizerConfig(
        str(path), 8, 8, pad_token="<pad>", bos_token="</s>", eos_token="</s>"
    )
    check_tokenizer(found)
    given.bos_token = "<s>"
    assert settle_tokenizer(given).bos_token == "<s>"
    (path.parent / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(InputError, match=r"tokenizer\.eos_token=null: .* has no eos_token\. Give"):
        settle_tokenizer(given)


def test_a_tokenizer_alone_has_the_special_tokens_of_llama(stored):
    path = str(stored())
    given = settle_tokenizer(TokenizerConfig(path, pad_token=None, bos_token=None, eos_token=None))
    assert given == TokenizerConfig(path, pad_token="<unk>", bos_token="<s>", eos_token="</s>")
    assert settle_tokenizer(TokenizerConfig()) == TokenizerConfig()
