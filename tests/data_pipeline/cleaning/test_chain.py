"""The cleaning steps one by one, their chain, and the report."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from conf.errors import InputError
from data_pipeline.cleaning.chain import Chain
from data_pipeline.cleaning.config import CleaningConfig, PiiOptions
from data_pipeline.cleaning.report import CleaningReport
from data_pipeline.cleaning.words import word_tokenizer

SENTENCES = (
    "The river rises in the hills, and it takes the rain of many small valleys with it. "
    "People have lived along its banks for a very long time, because the soil is good there. "
    "In spring the meadows are under water for some weeks, so people do not build on them. "
    "The old mill that you can still see from the bridge was used until the last war. "
    "It is a place to walk to on a quiet day, with bread and cheese in a bag.\n"
)
GOOD = "\n".join(
    SENTENCES.replace("river", river) for river in ("river", "stream", "brook", "torrent")
)


def run(step: str, text: str, **options):
    return Chain(CleaningConfig(steps=[step], **options), [step]).run(text)


@pytest.mark.parametrize("step", ["gopher_quality", "c4", "fineweb", "pii"])
def test_prose_passes(step):
    assert run(step, SENTENCES).dropped_by == ""


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ("gopher_quality", "Too short, that is all.", "gopher_short_doc"),
        ("gopher_quality", "1234 56789 " * 60, "gopher_below_alpha_threshold"),
        ("gopher_repetition", "The same line again.\n" * 40, "dup_line_frac"),
        ("c4", SENTENCES + "function f() { return 1 }.\n", "curly_bracket"),
        ("c4", "lorem ipsum dolor sit amet is here.\n" * 6, "lorem_ipsum"),
        ("c4", "Only one good sentence is in here.", "too_few_sentences"),
        ("fineweb", "no end of a sentence here at all\n" * 30, "line_punct_ratio"),
        ("fineweb", "Short line.\n" * 30 + SENTENCES, "short_line_ratio"),
    ],
)
def test_poor_text_is_dropped_with_its_reason(step, text, reason):
    outcome = run(step, text)
    assert (outcome.dropped_by, outcome.reason) == (step, reason)


def test_options_of_the_library_are_passed_on_and_unknown_ones_refused():
    assert run("gopher_quality", SENTENCES, gopher_quality={"min_doc_words": 500}).reason
    with pytest.raises(InputError, match=r"gopher_quality\.min_doc_word .*'min_doc_words'"):
        run("gopher_quality", SENTENCES, gopher_quality={"min_doc_word": 5})
    repeated = "the cat sat on the mat and the cat sat on the mat again " * 3
    assert run("gopher_repetition", repeated, gopher_repetition={"top_n_grams": [[2, 0.01]]}).reason


def test_c4_and_pii_change_text_and_transform_gives_the_same():
    menu = "Home | About | Contact\n"
    text = menu + SENTENCES + "Write to jane.doe@mail.example.org or 8.8.4.4 for more of it.\n"
    chain = Chain(CleaningConfig(steps=["c4", "pii"]), ["c4", "pii"])
    outcome = chain.run(text)
    assert outcome.changed == ("c4", "pii")
    assert menu.strip() not in outcome.text
    assert "email@example.com or 192.0.2.1 for" in outcome.text
    assert chain.transform(text) == outcome.text
    assert outcome.sizes[0] == len(text.encode()) > outcome.sizes[1]


def test_transform_equals_run_on_real_documents():
    library = Path(sysconfig.get_path("stdlib"))
    chain = Chain(CleaningConfig(steps=["c4", "fineweb", "pii"]), ["c4", "fineweb", "pii"])
    texts = [path.read_text() for path in sorted((library / "email").glob("*.py"))]
    texts += [SENTENCES + text.split('"""')[1] for text in texts if text.count('"""') > 1]
    kept = 0
    for text in texts:
        outcome = chain.run(text)
        if not outcome.dropped_by:
            kept += 1
            assert chain.transform(text) == outcome.text
    assert kept > 3


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Ask bob@site.com now", "Ask <mail> now"),
        ("server 10.0.0.1 and 127.0.0.1", None),  # private
        ("server 8.8.8.8.", "server <ip>."),
        ("version 1.2.3", None),
        ("@decorator and a@b", None),
    ],
)
def test_addresses_are_masked_and_other_text_is_kept(text, masked):
    outcome = run("pii", text, pii=PiiOptions(email="<mail>", ip="<ip>"))
    assert outcome.text == (masked or text)
    assert outcome.changed == (("pii",) if masked else ())
    left = run("pii", text, pii=PiiOptions(email="", ip=""))
    assert left.text == text


def test_words_and_sentences():
    words = word_tokenizer("words")
    assert words.word_tokenize("It's a well-known fact: 3.5%!") == [
        *("It's", "a", "well-known", "fact", ":", "3", ".", "5", "%!"),
    ]
    sentences = words.sent_tokenize('One here. "Two," he said! Three?\nFour')
    assert [s.strip() for s in sentences] == ["One here.", '"Two," he said!', "Three?", "Four"]


def test_texts_without_words_do_not_break_a_step():
    for step in ("gopher_quality", "gopher_repetition", "c4", "fineweb", "pii"):
        for text in ("\n \n", "…", "\u200b", "a"):
            run(step, text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": ["gopher"]}, "steps: unknown step 'gopher'"),
        ({"steps": ["pii", "pii"]}, "'pii' is listed twice"),
        ({"word_tokenizer": "nltk"}, "word_tokenizer=nltk: unknown choice"),
    ],
)
def test_settings_are_checked(options, says):
    with pytest.raises(InputError) as error:
        CleaningConfig(**options)
    assert says in str(error.value)


def test_the_fingerprint_follows_settings_and_models(tmp_path):
    base = CleaningConfig(steps=["pii"])
    prints = {
        Chain(config, list(config.steps)).fingerprint()
        for config in (
            base,
            CleaningConfig(steps=["pii", "c4"]),
            CleaningConfig(steps=["pii"], pii=PiiOptions(email="x")),
            replace(base, word_tokenizer="spacy"),
        )
    }
    assert len(prints) == 4
    other = CleaningConfig(steps=["pii"], c4={"min_num_sentences": 1})  # not a step of it
    assert Chain(other, ["pii"]).fingerprint() == Chain(base, ["pii"]).fingerprint()


def report_of(texts, first=0):
    chain = Chain(CleaningConfig(steps=["c4", "pii"]), ["c4", "pii"])
    report = CleaningReport()
    report.expect("web", ["c4", "pii"])
    for number, text in enumerate(texts):
        report.add("web", f"{first + number}.txt", 0, chain.run(text))
    return report


def test_a_report_counts_documents_and_bytes_and_shows_examples():
    texts = [SENTENCES, "Short.", "lorem ipsum is all of this here.", SENTENCES + "a@b.com is it."]
    steps = report_of([*texts, *["Tiny."] * 9]).to_json()["sources"]["web"]["steps"]
    c4, pii = steps
    assert (c4["name"], pii["name"]) == ("c4", "pii")
    assert (c4["in_documents"], c4["dropped_documents"]) == (13, 11)
    assert c4["in_bytes"] - c4["dropped_bytes"] >= pii["in_bytes"] > 0
    assert c4["reasons"]["lorem_ipsum"] == [1, len(texts[2])]
    assert c4["reasons"]["too_few_sentences"][0] == 10
    assert [e["file"] for e in c4["examples"] if e["reason"] != "lorem_ipsum"] == [
        *("1.txt", "4.txt", "5.txt"),
    ]
    assert (pii["in_documents"], pii["changed_documents"]) == (2, 1)


def test_reports_of_parts_merge_into_the_whole():
    texts = [SENTENCES, "Short.", "lorem ipsum is all of this.", GOOD, "Tiny.", "a", "b", "c"]
    merged = CleaningReport()
    for first in (0, 3, 6):
        part = report_of(texts[first : first + 3], first)
        merged.merge(CleaningReport.from_json(json.loads(json.dumps(part.to_json()))))
    assert merged.to_json() == report_of(texts).to_json()
