"""Evaluation sets are found in documents, independently of case and punctuation."""

from __future__ import annotations

import json
import random

import pytest
import yaml

from conf.errors import InputError
from data_pipeline.cleaning.chain import Chain
from data_pipeline.cleaning.config import CleaningConfig, DecontaminateOptions
from data_pipeline.cleaning.decontaminate import NgramIndex
from data_pipeline.cleaning.ngrams import n_grams, word_hashes, words

WORDS = [
    f"{a}{b}" for a in ("ba", "du", "ki", "lo", "me", "nu") for b in ("ren", "stal", "vo", "x")
]
ITEM = "Which of the rivers of the old kingdom was the first to be crossed by a bridge of stone?"


def noise(count, seed):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


def chain(**options):
    config = CleaningConfig(steps=["decontaminate"], decontaminate=DecontaminateOptions(**options))
    return Chain(config, ["decontaminate"])


@pytest.fixture
def quiz(tmp_path):
    rows = [
        {"question": ITEM, "answer": "The Lothe."},
        {"question": "Why is it dark at night over there?", "answer": "It is not known so far."},
        {"question": "Too short?", "answer": None},
    ]
    path = tmp_path / "quiz.v1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "leak",
    [
        ITEM,
        ITEM.upper(),
        ITEM.replace(" ", "  ").replace("old", "old,"),
        ITEM.replace(" ", "\n"),
        " ".join(ITEM.split()[:13]),  # cut off
        " ".join(ITEM.split()[3:]),
    ],
)
def test_planted_leaks_are_found_in_long_documents(quiz, leak):
    steps = chain(files=[str(quiz)], fields=["question", "answer"])
    for place in (0, 500, 2000):
        text = f"{noise(place, place)} {leak} {noise(2000 - place, 1)}"
        outcome = steps.run(text)
        assert (outcome.dropped_by, outcome.reason) == ("decontaminate", "in_quiz")
        assert len(outcome.note.split()) == 13
        assert outcome.note.split()[5] in ITEM.lower()


def test_clean_documents_pass(quiz):
    steps = chain(files=[str(quiz)], fields=["question", "answer"])
    for seed in range(50):
        assert not steps.run(noise(1000, seed)).dropped_by
    assert not steps.run(" ".join(ITEM.split()[:12])).dropped_by  # 12 words of 13
    assert not steps.run("Too short?").dropped_by
    assert not steps.run("").dropped_by


def test_an_item_shorter_than_the_n_gram_must_match_as_a_whole(quiz):
    steps = chain(files=[str(quiz)], fields=["question"])
    short = "why is it dark at NIGHT over there"
    assert steps.run(f"{noise(50, 0)} {short} {noise(50, 1)}").reason == "in_quiz"
    assert not steps.run(f"{noise(50, 0)} {short[:-6]} {noise(50, 1)}").dropped_by


def test_the_minimum_number_of_matches_can_be_set(quiz):
    steps = chain(files=[str(quiz)], fields=["question"], min_matches=3)
    part = " ".join(ITEM.split()[:14])  # two 13-grams
    assert not steps.run(part).dropped_by
    assert steps.run(ITEM).dropped_by


def test_a_text_file_is_one_item(tmp_path):
    (tmp_path / "exam.txt").write_text(f"{noise(30, 3)}. {ITEM}")
    assert chain(files=[str(tmp_path / "exam.txt")]).run(ITEM).reason == "in_exam"


@pytest.mark.slow
def test_tasks_of_lm_eval_are_rendered_with_their_answers(tmp_path):
    (tmp_path / "rows.json").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (
                {"q": f"{noise(9, 7)}?", "choices": ["no", f"yes {noise(9, 8)}"], "gold": 1},
            )
        )
    )
    task = {
        "task": "river_quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{q}} Answer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "river_quiz.yaml").write_text(yaml.safe_dump(task))
    options = {"tasks": ["river_quiz"], "task_folders": [str(tmp_path / "tasks")]}
    steps = chain(**options)
    leak = f"{noise(9, 7)}? Answer: yes {noise(9, 8)}"
    assert steps.run(f"{noise(90, 1)} {leak}").reason == "in_river_quiz"
    assert not steps.run(f"{noise(90, 1)} {noise(9, 7)}? Answer: no").dropped_by
    with pytest.raises(InputError, match="lm-eval has no task 'river_quizz'"):
        chain(**{**options, "tasks": ["river_quizz"]})


def test_the_fingerprint_follows_the_items(quiz):
    options = {"files": [str(quiz)], "fields": ["question"]}
    before = chain(**options).fingerprint()
    assert chain(**options).fingerprint() == before
    quiz.write_text(quiz.read_text().replace("kingdom", "empire"))
    assert chain(**options).fingerprint() != before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no evaluation sets are given. Set files or tasks"),
        ({"fields": ["query"]}, "quiz.v1.jsonl, line 1 has none of these columns"),
    ],
)
def test_sets_that_cannot_be_read_are_refused(quiz, options, says):
    files = [str(quiz)] if options else []
    with pytest.raises(InputError) as error:
        chain(files=files, **options)
    assert says in str(error.value)
    with pytest.raises(InputError, match=r"decontaminate\.files: nowhere does not exist"):
        CleaningConfig(decontaminate=DecontaminateOptions(files=["nowhere"]))


def test_rolling_hashes_are_those_of_the_words():
    text = noise(40, 5)
    hashes = word_hashes(words(text))
    for n in (1, 2, 13):
        rolled = n_grams(hashes, n)
        assert len(rolled) == 41 - n
        alone = [int(n_grams(hashes[at : at + n], n)[0]) for at in range(41 - n)]
        assert rolled.tolist() == alone
    index = NgramIndex(13, 8, 1)
    index.add("empty", [])
    index.build()
    assert index.find(text) is None
