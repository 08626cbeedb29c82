"""Fill in the middle: a pure function of the sample that loses and mixes up nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, BatchReader, held_out_batches
from data_pipeline.sampling.fim import (
    FimConfig,
    FimTokens,
    added_tokens,
    check_fim,
    describe_fim,
)
from data_pipeline.sampling.fim_transform import COUNTS, MIN_TOKENS, SourceFim
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import plan_from_mapping
from data_pipeline.sampling.stage import Stage
from data_pipeline.store.manifest import load_manifest
from data_pipeline.tokenizing.tokenize import tokenize
from tests.data_pipeline.sampling.fim_corpus import (
    EOS,
    MIDDLE,
    NAMES,
    PREFIX,
    SUFFIX,
    make_fim_corpus,
    order_of,
    parts_of,
)

HALF = {"code": FimConfig(0.5)}
ALL = {"code": FimConfig(1.0)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_fim_corpus(tmp_path_factory.mktemp("fim") / "corpus")


@st.composite
def rows(draw):
    """Draws a sample of some documents, maybe followed by padding, and the options of FIM."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    documents = [[10 + n % 200 for n in range(size)] for size in lengths]
    tokens = np.array([of for document in documents for of in (*document, EOS)])
    tokens = np.append(tokens[draw(st.integers(0, 5)) : draw(st.integers(12, 200))], [10])
    padding = np.zeros(len(tokens), bool)
    if draw(st.booleans()):
        padding[-draw(st.integers(1, 9)) :] = True
        tokens[padding] = 0
    begins = (tokens[:-1] == EOS) | (padding[1:] != padding[:-1])
    config = FimConfig(
        draw(st.sampled_from([0.3, 1.0])), draw(st.sampled_from(["psm", "spm", "mixed"]))
    )
    end = draw(st.sampled_from([None, EOS, 300]))
    return tokens, begins, padding, config, end, draw(st.integers(0, 2**60))


@settings(deadline=None, max_examples=100)
@given(rows())
def test_a_sample_keeps_its_first_tokens_and_every_document_its_parts(drawn):
    tokens, begins, padding, config, end, position = drawn
    source = SourceFim(config, FimTokens(PREFIX, SUFFIX, MIDDLE, end), 5, 1, EOS)
    places, new_begins, parts = source.arrange(tokens, begins, padding, position, 2)
    assert len(places) == len(tokens)
    kept = np.sort(places[places >= 0])
    assert kept.tolist() == list(range(len(kept)))  # what is dropped is at the end
    starts = np.concatenate(([0], np.flatnonzero(begins) + 1)).tolist()
    at = 0
    for number, part in enumerate(parts):
        assert part.start == starts[number]
        whole = [*starts, len(tokens)][number + 1] - part.start
        assert part.kept <= whole
        mine = places[at : at + part.tokens]
        own = mine[mine >= 0]
        # Nothing of another document is inside.
        assert sorted(own.tolist()) == list(range(part.start, part.start + part.kept))
        if not part.format:
            assert own.tolist() == mine.tolist() == sorted(own.tolist())
        else:
            assert not padding[part.start]
            written = np.where(mine >= 0, tokens[np.maximum(mine, 0)], -1 - mine).tolist()
            has_eos = tokens[part.start + part.kept - 1] == EOS
            if has_eos:
                assert written.pop() == EOS
            if end is not None and not (has_eos and end == EOS):
                assert written.pop() == end
            form, prefix, middle, suffix = parts_of(written)
            if part.format == "spm":
                prefix, middle = [], prefix + middle if form == "psm" else middle
            body = tokens[part.start : part.start + part.kept - has_eos].tolist()
            if part.format == "psm":
                assert prefix + middle + suffix == body
            else:  # where prefix and middle meet is not written
                assert middle + suffix == body
            assert len(body) >= MIN_TOKENS
        at += part.tokens
        if at < len(tokens):
            assert new_begins[at - 1]
    assert at == len(tokens)
    assert new_begins.sum() == len(parts) - 1


def test_reading_is_pure(manifest):
    """A sample does not depend on its batch, the process that reads it, or what was read before."""
    order = order_of(manifest, HALF)
    numbers = np.arange(60)
    whole = BatchReader(manifest, order).read(0, numbers)
    again = SampleOrder.from_json(order.to_json())
    reader = BatchReader(manifest, again)
    for number in reversed(numbers.tolist()):
        alone = reader.read(0, [number])
        assert alone.tokens[0].tolist() == whole.tokens[number].tolist()
        assert alone.labels[0].tolist() == whole.labels[number].tolist()
    parts = list(reader.read_all(0, numbers, 7))
    assert np.sum([part.fim for part in parts], axis=0).tolist() == whole.fim.tolist()
    assert [row for part in parts for row in part.tokens.tolist()] == whole.tokens.tolist()
    other = BatchReader(manifest, order_of(manifest, HALF, seed=4))
    assert other.read(0, numbers).tokens.tolist() != whole.tokens.tolist()


def test_off_is_what_it_was(manifest):
    plain, off = order_of(manifest, {}), order_of(manifest, {"prose": FimConfig(1.0)})
    assert "fim" not in plain.to_json()
    assert json.loads(plain.to_json())["format"] == 1
    assert json.loads(off.to_json())["format"] == 3
    numbers = np.arange(80)
    before, after = (BatchReader(manifest, order).read(0, numbers) for order in (plain, off))
    assert len(before.fim) == 0
    code = before.sources == plain.sources.index("code")
    assert before.tokens[code].tolist() == after.tokens[code].tolist()
    assert before.labels[code].tolist() == after.labels[code].tolist()
    assert before.tokens[~code].tolist() != after.tokens[~code].tolist()
    recipe = {
        "global_batch_tokens": 128,
        "stages": {"one": {"seq_len": 128, "tokens": 1280, "fim": {"code": {"share": 0.0}}}},
    }
    plan = plan_from_mapping(recipe, manifest.source_tokens("train"))
    assert plan.stages[0].fim == {}


def test_labels_boundaries_and_counts(manifest):
    order = order_of(manifest, ALL)
    batch = BatchReader(manifest, order).read(0, np.arange(100))
    plain = BatchReader(manifest, order_of(manifest, {})).read(0, np.arange(100))
    special = (batch.labels >= PREFIX).any()
    assert not special  # they are given when the model is used
    flat, labels = batch.tokens.flatten(), batch.labels.flatten()
    starts = set(batch.cu_seqlens.tolist())
    assert {int(at) for at in (flat == PREFIX).nonzero()} <= starts
    for at in (flat == EOS).nonzero().flatten().tolist():
        assert at + 1 in starts
        assert labels[at] == IGNORED
    # A target is the next token.
    inside = labels.view(100, 128)[:, :-1]
    following = batch.tokens[:, 1:]
    assert following[inside != IGNORED].tolist() == inside[inside != IGNORED].tolist()
    documents, tokens, dropped = batch.fim[order.sources.index("code")].tolist()
    assert batch.fim[order.sources.index("prose")].tolist() == [0, 0, 0]
    assert documents == int((flat == PREFIX).sum())
    assert dropped > 2 * documents
    assert documents * MIN_TOKENS < tokens <= int((batch.sources == 0).sum()) * 128
    assert batch.documents.tolist() == plain.documents.tolist()


def test_shares_formats_and_cuts_are_as_stated():
    source = SourceFim(FimConfig(0.3), FimTokens(PREFIX, SUFFIX, MIDDLE), 99, 1, EOS)
    tokens = np.arange(1000, 1040)
    counts, cuts = {"": 0, "psm": 0, "spm": 0}, []
    total = 3000
    for number in range(total):
        places, _, [part] = source.arrange(tokens, np.zeros(39, bool), None, 40 * number, 0)
        counts[part.format] += 1
        if part.format == "psm":
            cuts.append((places == -1 - SUFFIX).argmax() - 1)
    for found, share in ((total - counts[""], 0.3), (counts["spm"], 0.15)):
        assert abs(found - share * total) < 4 * math.sqrt(total * share * (1 - share))
    # The first of two uniform cuts in 0 to 37 has a mean of a third.
    assert np.mean(cuts) == pytest.approx(37 / 3, abs=1)
    assert min(cuts) == 0


def test_every_epoch_cuts_anew():
    source = SourceFim(FimConfig(1.0), FimTokens(PREFIX, SUFFIX, MIDDLE), 99, 1, EOS)
    tokens, begins = np.arange(1000, 1040), np.zeros(39, bool)
    found = [source.arrange(tokens, begins, None, 7, epoch)[0].tolist() for epoch in range(8)]
    assert len({tuple(places) for places in found}) == 8
    assert found[0] == source.arrange(tokens, begins, None, 7, 0)[0].tolist()


def test_padding_is_dropped_before_text():
    source = SourceFim(FimConfig(1.0, "psm"), FimTokens(PREFIX, SUFFIX, MIDDLE), 99, 1, EOS)
    tokens = np.array([*range(10, 20), EOS, *range(30, 36), EOS, *[0] * 10])
    padding = tokens == 0
    begins = (tokens[:-1] == EOS) | (padding[1:] != padding[:-1])
    places, _, parts = source.arrange(tokens, begins, padding, 0, 0)
    assert [part.kept for part in parts] == [11, 7, 4]
    assert places[-4:].tolist() == [18, 19, 20, 21]


def test_text_with_a_special_token_stays_as_it_is():
    source = SourceFim(FimConfig(1.0), FimTokens(PREFIX, SUFFIX, MIDDLE), 99, 1, EOS)
    tokens = np.array([10, 11, MIDDLE, 12, 13, EOS, 14, 15, 16, 17, 18])
    _, _, parts = source.arrange(tokens, tokens[:-1] == EOS, None, 0, 0)
    assert [bool(part.format) for part in parts] == [False, False]  # no room for the second
    tokens = np.concatenate((tokens[6:], [EOS], tokens))
    _, _, parts = source.arrange(tokens, tokens[:-1] == EOS, None, 0, 0)
    assert [bool(part.format) for part in parts] == [True, False, False]


def test_bos_stays_at_the_start():
    source = SourceFim(FimConfig(1.0), FimTokens(PREFIX, SUFFIX, MIDDLE), 99, 1, EOS)
    tokens = np.array([1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, EOS])
    places, _, _ = source.arrange(tokens, np.zeros(11, bool), None, 0, 0)
    assert places[:2].tolist() == [0, -1 - PREFIX]


def test_held_out_text_is_never_rearranged(manifest):
    batches = held_out_batches(manifest, "code", 128, 4, 2000)
    assert all(int(batch.tokens.max()) < PREFIX and not len(batch.fim) for batch in batches)


def test_the_counts_have_names():
    assert COUNTS == ("documents", "tokens", "dropped")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 1.5}, r"fim\.code\.share=1\.5: expected a fraction from 0 to 1"),
        ({"share": -0.1}, r"fim\.code\.share=-0\.1: expected a fraction"),
        ({"format": "fim"}, r"fim\.code\.format=fim: unknown choice"),
        ({"suffix": NAMES[1]}, r"fim\.code\.prefix=null: .*fim\.code\.suffix is set"),
        ({"prefix": "a", "suffix": "b", "middle": "a"}, r"fim\.code: a token has two roles"),
    ],
)
def test_options_that_cannot_be_are_refused(manifest, options, sentence):
    recipe = {
        "global_batch_tokens": 128,
        "stages": {"one": {"seq_len": 128, "tokens": 1280, "fim": {"code": options}}},
    }
    with pytest.raises(InputError, match=sentence):
        plan_from_mapping(recipe, manifest.source_tokens("train"))


def test_a_source_that_the_mixture_lacks_is_refused(manifest):
    stage = {"seq_len": 128, "tokens": 1280, "mixture": {"prose": 1}, "fim": {"code": {}}}
    recipe = {"global_batch_tokens": 128, "stages": {"one": stage}}
    with pytest.raises(
        InputError, match=r"stages\.one\.fim\.code: the mixture of the stage has no"
    ):
        plan_from_mapping(recipe, manifest.source_tokens("train"))


def test_tokens_come_from_the_tokenizer_of_the_corpus(manifest, tokenized):
    with pytest.raises(
        InputError, match=r"stages\.one\.fim\.code: the tokenizer .* no special tok"
    ):
        check_fim({"one": HALF}, tokenized)
    named = FimConfig(0.5, "psm", *NAMES)
    check_fim({"one": {"code": named}}, manifest)
    changes: list[tuple[dict[str, Any], str]] = [
        (
            {"middle": "<fim>"},
            r"fim\.code\.middle=<fim>: the tokenizer of the corpus has no special",
        ),
        (
            {"end": "<eot>"},
            r"fim\.code\.end=<eot>: the tokenizer of the corpus has no special token",
        ),
        ({"prefix": "</s>"}, r"fim\.code\.prefix=</s>: this is the EOS of the corpus"),
    ]
    for change, sentence in changes:
        with pytest.raises(InputError, match=sentence):
            check_fim({"one": {"code": replace(named, **change)}}, manifest)
    check_fim({"one": {"code": replace(named, end="</s>")}}, manifest)
    words = describe_fim({"one": HALF, "two": HALF}, manifest)
    assert words == f"50% mixed of the documents of code with {', '.join(NAMES)} in stage one, two"
    assert describe_fim({"one": {}}, manifest) == ""


def test_the_history_of_an_order_has_its_options(manifest):
    half, all_, plain = (order_of(manifest, fim) for fim in (HALF, ALL, {}))
    assert half.has_same_history(SampleOrder.from_json(half.to_json()), 0, 50)
    assert not half.has_same_history(all_, 0, 50)
    assert not half.has_same_history(plain, 0, 50)
    assert half.has_same_history(plain, 0, 0)
    assert len({order.fingerprint for order in (half, all_, plain)}) == 3


def test_the_order_stays_as_it_was_released(manifest):
    """Pins the random numbers: a change would give other samples to runs in progress."""
    source = SourceFim(FimConfig(0.5), FimTokens(PREFIX, SUFFIX, MIDDLE), 5, 1, EOS)
    drawn = source.draw(1, np.array([0, 77]))
    assert drawn.round(6).tolist() == [
        [0.631103, 0.34701, 0.435793, 0.392586],
        [0.889217, 0.322383, 0.447784, 0.329521],
    ]


def test_packed_documents_with_a_trained_tokenizer(texts, configure, tmp_path):
    """A sample has the first tokens of what it reads, and as many special ones as it dropped."""
    config = configure(texts, tmp_path / "packed", fit=[256])
    config.tokenizer.extra_tokens = list(NAMES)
    tokenize(config)
    packed = load_manifest(tmp_path / "packed")
    new = [added_tokens(packed)[name] for name in NAMES]
    assert new == [3, 4, 5]
    batches = []
    for fim in ({}, ALL):
        stage = Stage(256, 40, {"code": 1.0}, fim=fim)
        order = SampleOrder(packed.source_tokens("train"), [stage], 0)
        batches.append(BatchReader(packed, order).read(0, np.arange(40)))
    plain, moved = batches
    assert moved.fim.sum() > 0
    lost = 0
    for before, after in zip(plain.tokens.tolist(), moved.tokens.tolist(), strict=True):
        kept = [token for token in after if token not in new]
        # The token after the sample, a label, may have moved into it or out of it.
        missing = Counter(before[: len(kept)]) - Counter(kept)
        assert missing.total() <= 1
        lost += sum(token != 0 for token in before[len(kept) :])
    assert abs(int(moved.fim[0, 2]) - lost) <= len(plain.tokens)
    assert not set(moved.labels.flatten().tolist()) & {0, *new}
