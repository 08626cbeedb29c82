"""Steps that use a model: the language and the quality of a text."""

from __future__ import annotations

import json
import random

import fasttext
import numpy as np
import pytest

from conf.errors import InputError
from data_pipeline.cleaning.chain import Chain
from data_pipeline.cleaning.config import CleaningConfig, LanguageOptions, QualityOptions
from data_pipeline.cleaning.quality_model import QualityModel
from data_pipeline.text.train_quality import auc

SPOKEN = {
    "en": "the a of house water and is was very with this that there from where good",
    "de": "der die das haus wasser und ist war sehr mit dies dass dort von wo gut",
    "fr": "le la les maison eau et est était très avec ce que là depuis où bon",
}
LANGUAGES = {language: words.split() for language, words in SPOKEN.items()}


def sentence(language, seed, words=30):
    return " ".join(random.Random(seed).choices(LANGUAGES[language], k=words))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    lines = [f"__label__{name} {sentence(name, seed)}" for name in LANGUAGES for seed in range(200)]
    random.Random(0).shuffle(lines)
    (folder / "train.txt").write_text("\n".join(lines))
    # fastText sets a tenth of the weights a thread: with fewer the others are what memory holds.
    model = fasttext.train_supervised(
        str(folder / "train.txt"), dim=10, epoch=10, lr=0.2, thread=10, verbose=0
    )
    model.save_model(str(folder / "lid.bin"))
    return folder / "lid.bin"


def language(**options):
    config = CleaningConfig(steps=["language"], language=LanguageOptions(**options))
    return Chain(config, ["language"])


def test_other_languages_are_dropped(language_model):
    steps = language(model=str(language_model), languages=["en", "fr"])
    for seed in range(1000, 1020):
        assert not steps.run(sentence("en", seed)).dropped_by
        assert not steps.run(sentence("fr", seed).replace(" ", "\n")).dropped_by
        outcome = steps.run(sentence("de", seed))
        assert outcome.reason == "language_de"
        assert outcome.note.startswith("de 1.0")
    mixed = f"{sentence('en', 1)} {sentence('de', 1)}"
    assert language(model=str(language_model), threshold=0.99).run(mixed).dropped_by


def test_language_models_are_checked(language_model, tmp_path):
    with pytest.raises(InputError, match=r"language\.model=null: .* Give a file such as lid"):
        language()
    with pytest.raises(InputError, match=r"language\.model=nowhere: no such file"):
        language(model="nowhere")
    with pytest.raises(
        InputError, match=r"'it' is not a label of the model\. Choose from de, en, fr"
    ):
        language(model=str(language_model), languages=["it"])
    (tmp_path / "text.bin").write_text("no model")
    with pytest.raises(InputError, match=r"text\.bin: not a fastText model"):
        language(model=str(tmp_path / "text.bin"))


def good(seed):
    draw = random.Random(seed)
    parts = [sentence("en", draw.random(), draw.randint(6, 14)).capitalize() for _ in range(12)]
    return ". ".join(parts) + ".\n"


def bad(seed):
    draw = random.Random(seed)
    words = ["BUY", "click", "cheap", ">>>"]
    return "\n".join(
        f"{draw.choice(words)} {draw.randint(0, 999)} | $$$ {'!' * draw.randint(1, 5)}"
        for _ in range(25)
    )


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The folder in which the command wrote quality.lgb, and its output."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "good.jsonl").write_text(
        "".join(json.dumps({"text": good(n)}) + "\n" for n in range(80))
    )
    (folder / "bad").mkdir()
    for n in range(80):
        (folder / "bad" / f"{n}.txt").write_text(bad(n))
    done = train(command, folder, "quality.lgb")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def train(command, folder, out):
    return command(
        *("data_pipeline", "quality", f"good=[{folder / 'good.jsonl'}]", f"bad=[{folder / 'bad'}]"),
        *(f"out={folder / out}", "trees=40"),
    )


def test_quality_is_learned_from_examples(trained, command):
    folder, said = trained
    assert "trained on 128 examples. On 32 held-out examples: AUC" in said
    model = QualityModel.load(folder / "quality.lgb")
    assert model.metadata["auc"] > 0.95
    options = QualityOptions(model=str(folder / "quality.lgb"))
    steps = Chain(CleaningConfig(steps=["quality"], quality=options), ["quality"])
    assert not any(steps.run(good(n)).dropped_by for n in range(1000, 1020))
    outcomes = [steps.run(bad(n)) for n in range(1000, 1020)]
    assert all(outcome.reason == "low_quality" for outcome in outcomes)
    assert outcomes[0].note.endswith("threshold 0.5")
    steps.run("")


def test_the_same_examples_give_the_same_file(trained, command):
    folder, _ = trained
    assert train(command, folder, "again.lgb").returncode == 0
    assert (folder / "again.lgb").read_bytes() == (folder / "quality.lgb").read_bytes()


def test_too_few_examples_are_refused(trained, command, tmp_path):
    folder, _ = trained
    (tmp_path / "few.jsonl").write_text('{"text": "one"}\n')
    for bad_path, says in (
        (tmp_path / "few.jsonl", "found 80 good and 1 bad examples"),
        (tmp_path / "none.jsonl", f"bad: {tmp_path / 'none.jsonl'} does not exist"),
    ):
        done = command(
            *("data_pipeline", "quality", f"good=[{folder / 'good.jsonl'}]"),
            *(f"bad=[{bad_path}]", f"out={tmp_path / 'out'}"),
        )
        assert done.returncode == 2
        assert says in done.stderr
        assert not (tmp_path / "out").exists()
    (tmp_path / "text").write_text("{}\nno model")
    for path in (tmp_path / "text", folder / "good.jsonl"):
        with pytest.raises(InputError, match="is not a quality model"):
            QualityModel.load(path)
    options = CleaningConfig(steps=["quality"])
    with pytest.raises(InputError, match=r"quality\.model=null: .* Give a file"):
        Chain(options, ["quality"])


def test_area_under_the_curve():
    truth = np.array([True, True, False, False])
    assert auc(np.array([0.9, 0.8, 0.2, 0.1]), truth) == 1
    assert auc(np.array([0.1, 0.2, 0.8, 0.9]), truth) == 0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), truth) == 0.5
    assert auc(np.array([0.9, 0.3, 0.5, 0.1]), truth) == 0.75


@pytest.fixture(scope="module")
def classifier(trained, tmp_path_factory):
    """A tiny BERT with a head of two labels, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "good": 2, "words": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=4,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            id2label={0: "poor", 1: "fine"},
            label2id={"poor": 0, "fine": 1},
        )
    )
    model.classifier.bias.data[:] = model.classifier.bias.data.new_tensor([0.0, 9.0])
    model.save_pretrained(folder)
    return folder


def test_a_hugging_face_classifier_scores_texts(classifier):
    def steps(**options):
        quality = QualityOptions(model=str(classifier), **options)
        return Chain(CleaningConfig(steps=["quality"], quality=quality), ["quality"])

    long = "good words " * 500
    assert not steps().run(long).dropped_by
    assert not steps(label="fine").run("good").dropped_by
    assert steps().run("").dropped_by
    assert steps(label="poor").run(long).reason == "low_quality"
    with pytest.raises(
        InputError, match=r"label=fin: not a label of the model .*did you mean 'fine'"
    ):
        steps(label="fin")


def test_a_folder_without_a_classifier_is_refused(tmp_path):
    quality = QualityOptions(model=str(tmp_path))
    with pytest.raises(InputError, match="not a text classifier"):
        Chain(CleaningConfig(steps=["quality"], quality=quality), ["quality"])
