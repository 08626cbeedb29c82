"""Needle tasks: exact lengths, facts at their depths, and models whose scores are known."""

from __future__ import annotations

import json
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from conf.errors import InputError
from data_pipeline.tokenizing.tokenizer import load_tokenizer
from eval.report.page_needle import heat_maps
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.results import load_results
from eval.tasks.build_tasks import BuildTasksConfig, build_tasks
from eval.tasks.load import load_tasks, quiet
from eval.tasks.needle import NeedleConfig, answer_words, fact_of
from eval.tasks.score import score_tasks
from eval.tasks.suites import select
from tests.corpora import SPECIAL, byte_tokenizer, read_json_lines

LENGTHS = [400, 901]
DEPTHS = [0.0, 50.0, 100.0]


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory) -> Path:
    """A tokenizer with words as single tokens, trained on the text of the corpus."""
    tokenizer = byte_tokenizer()
    alphabet = ByteLevel.alphabet()
    text = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    tokenizer.train(
        [str(text)],
        BpeTrainer(
            vocab_size=2500,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def build(named_corpus, tmp_path_factory):
    """Builds tasks, and returns their folder."""

    def build(out: Path | None = None, seed: int = 0, **needle: Any) -> Path:
        settings: dict[str, Any] = {"lengths": LENGTHS, "depths": DEPTHS, "samples": 2} | needle
        config = BuildTasksConfig(
            corpus=str(named_corpus.folder),
            out=str(out or tmp_path_factory.mktemp("needle") / "tasks"),
            questions=0,
            documents=0,
            needle=NeedleConfig(**settings),
            seed=seed,
        )
        build_tasks(config)
        return Path(config.out)

    return build


@pytest.fixture(scope="module")
def tasks(build, word_tokenizer) -> Path:
    """Tasks whose words are single tokens."""
    return build(tokenizer=str(word_tokenizer))


def rows_of(folder: Path, length: int) -> list[dict[str, Any]]:
    return read_json_lines(folder / f"bytes_needle_{length}.jsonl")


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_samples_have_the_tokens_of_their_name(kind, build, tasks, word_tokenizer, named_corpus):
    folder = tasks if kind == "words" else build()
    path = word_tokenizer if kind == "words" else named_corpus.tokenizer_path
    tokenizer = load_tokenizer(path)
    for length in LENGTHS:
        for row in rows_of(folder, length):
            sizes = {len(tokenizer.encode(row["context"] + c).ids) for c in row["choices"]}
            assert sizes == {length}
            context = tokenizer.encode(row["context"]).ids
            answer = row["choices"][row["label"]]
            assert tokenizer.encode(row["context"] + answer).ids[: len(context)] == context
            assert length - len(context) == (1 if kind == "words" else 6)


def test_a_fact_is_at_its_depth_and_occurs_once(tasks):
    for length in LENGTHS:
        rows = rows_of(tasks, length)
        assert [row["depth"] for row in rows] == DEPTHS * 2
        for row in rows:
            question = row["context"].splitlines()[-1]
            answer = row["choices"][row["label"]]
            lines = row["context"].splitlines()
            assert lines.count(f"{question}{answer}.") == 1
            assert row["context"].count(answer.strip()) == 1
            facts = [
                line for line in lines if re.fullmatch(r"The secret word of \w+ is \w+\.", line)
            ]
            assert len(facts) == 4
            told = {fact.split()[-1].rstrip(".") for fact in facts}
            assert told == {choice.strip() for choice in row["choices"]}
            assert len(told) == 4
            # Facts in front of it are not part of the text, so the depth is that of the text alone.
            others = "|".join(re.escape(fact) for fact in facts)
            text = re.sub(others, "", row["context"].rsplit("\n", 1)[0])
            before = re.sub(others, "", row["context"].split(f"{question}{answer}.")[0])
            assert len(before) / len(text) == pytest.approx(row["depth"] / 100, abs=0.05)
        assert rows[0]["tokens_before_fact"] == 0
        assert rows[2]["tokens_before_fact"] > 0.8 * length


def test_the_text_is_held_out(tasks, named_corpus):
    from data_pipeline.tokenizing.documents import read_documents

    sources = named_corpus.source_tokens("held_out")
    held = "\n".join(
        document.text
        for source in sources
        for document in read_documents(named_corpus, "held_out", source)
    )
    for row in rows_of(tasks, 901):
        lines = [line for line in row["context"].splitlines() if len(line) > 20]
        own = [line for line in lines if not line.startswith("The secret word")]
        assert len(own) > 5
        assert all(line.strip() in held for line in own[1:])


def test_the_seed_determines_the_samples(build, tmp_path):
    first = rows_of(build(tmp_path / "a", lengths=[400]), 400)
    assert rows_of(build(tmp_path / "b", lengths=[400]), 400) == first
    assert rows_of(build(tmp_path / "c", lengths=[400], seed=1), 400) != first


def test_one_fact_has_choices_that_are_not_in_the_text(build, word_tokenizer):
    folder = build(lengths=[400], facts=1, tokenizer=str(word_tokenizer))
    for row in rows_of(folder, 400):
        there = [choice.strip() in row["context"] for choice in row["choices"]]
        assert there == [number == row["label"] for number in range(4)]


@pytest.mark.parametrize(
    ("needle", "sentence"),
    [
        ({"lengths": [10**7]}, r"needle.lengths: 10,000,000 tokens .* held-out text has only"),
        ({"lengths": [100]}, r"no sample of exactly 100 tokens was found with needle.facts=4"),
        ({"sources": ["tales"]}, r"needle.sources=\['tales'\]: .* It has that of code, prose"),
        ({"facts": 0}, "needle.facts=0: expected 1 or more"),
        ({"lengths": [8, 8]}, r"needle.lengths=\[8, 8\]: a value is repeated"),
        ({"depths": [101.0]}, r"needle.depths=\[101.0\]: expected percentages from 0 to 100"),
        ({"fact": "{word}"}, r"needle.fact=\{word\}: expected one \{name\} and one \{word\}"),
        ({"fact": "{word} is {name}."}, r"expected \{name\} before \{word\}"),
    ],
)
def test_bad_settings_are_refused(build, tmp_path, needle, sentence):
    with pytest.raises(InputError, match=sentence):
        build(tmp_path / "tasks", **needle)
    assert not (tmp_path / "tasks").exists()


def test_words_are_single_tokens_or_else_numbers(word_tokenizer):
    template = NeedleConfig().fact
    words = load_tokenizer(word_tokenizer)
    assert all(
        len(words.encode(fact_of(template, "it", word).answer).ids) == 1
        for word in answer_words(words, template)
    )
    numbers = answer_words(byte_tokenizer(), template)
    assert all(re.fullmatch(r"[1-9]\d{4}", number) for number in numbers)
    assert len(set(numbers)) == len(numbers) > 1000


class Reader(TemplateLM):
    """A model that finds facts in the last `reach` tokens of a text, and guesses wrongly else."""

    max_length = 10**6
    max_gen_toks = 1
    eot_token_id = 2

    def __init__(self, tokenizer: Tokenizer, reach: int) -> None:
        super().__init__()
        self.tokenizer, self.reach = tokenizer, reach

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return self.tokenizer.encode(string).ids

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        scores = []
        for _, context, answer in requests:
            seen = self.tokenizer.decode(context[-self.reach :])
            question = seen.splitlines()[-1]
            found = question + self.tokenizer.decode(answer) + "." in seen
            scores.append((0.0 if found else -1.0 - answer[0] / 1e4, found))
        return scores

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def test_scores_and_map_of_a_model_that_reads_the_end_alone(tasks, word_tokenizer, tmp_path):
    settings = LmEvalConfig(
        models={"x": "x"},
        tasks=[f"bytes_needle_{length}" for length in LENGTHS],
        task_folder=str(tasks),
        out=str(tmp_path / "out"),
    )
    selection = select(settings)
    models = {}
    with quiet(offline=True):
        manager = load_tasks(selection)
        for name, reach in (("all", 10**6), ("end", 300)):
            reader = Reader(load_tokenizer(word_tokenizer), reach)
            models[name] = {"tasks": score_tasks(reader, selection, manager, None)}
    for task in models["all"]["tasks"].values():
        values = {metric: score["value"] for metric, score in task["metrics"].items()}
        assert values == {"acc": 1.0, "exact_match": 1.0}
        assert task["chance"] == 0.25
    maps = heat_maps({"models": models})
    assert [(m["title"], m["unit"].split(",")[0]) for m in maps] == [
        *(("all", "acc"), ("all", "exact match"), ("end", "acc"), ("end", "exact match"))
    ]
    whole, end = maps[1], maps[3]
    assert whole["lengths"] == ["400", "901"]
    assert {c["text"] for row in whole["rows"] for c in row["cells"]} == {"100"}
    found = {row["depth"]: [cell["text"] for cell in row["cells"]] for row in end["rows"]}
    assert found == {"0%": ["0", "0"], "50%": ["100", "0"], "100%": ["100", "100"]}
    assert "2 samples per cell, 4 facts in each text" in end["about"]
    assert "Random guessing: 25%." in maps[2]["about"]


def test_lm_eval_scores_a_folder_with_needles(build, model, tmp_path):
    folder = build(lengths=[450], depths=[0.0, 100.0], samples=1)
    out = tmp_path / "results.json"
    harness.lm_eval(
        LmEvalConfig(
            models={"tiny": str(model)},
            tasks=["bytes_needle_450"],
            task_folder=str(folder),
            out=str(out),
        )
    )
    (task,) = load_results(out)["models"]["tiny"]["tasks"].values()
    assert task["needle"] == {"name": "bytes", "length": 450, "depths": [0.0, 100.0], "facts": 4}
    assert set(task["each"]) == {"acc", "exact_match"}
    assert json.loads((folder / "tasks.json").read_text())["tasks"] == {"bytes_needle_450": 2}
