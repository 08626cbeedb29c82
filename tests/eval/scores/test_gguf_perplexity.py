"""GGUF files are scored on the tokens of their model, and the card has what quantization costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from conf.model_card import with_section
from eval.scores.perplexity import PerplexityConfig, perplexity
from model.gguf.command import GGUFConfig, gguf

SEQ_LEN, TOKENS = 12, 36


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A model with a card and GGUF files next to it."""
    pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (extra gguf)")
    made = shutil.copytree(model, tmp_path / "model")
    (made / "README.md").write_text("---\nlicense: mit\n---\n# model\n\n## Use\n\nCarefully.\n")
    for type in ("f32", "q8_0"):
        gguf(GGUFConfig(model=str(made), out=str(tmp_path / f"{type}.gguf"), type=type))
    return made


def config(folder: Path, data: Path, **settings: Any) -> PerplexityConfig:
    files = [str(folder.parent / f"{type}.gguf") for type in ("f32", "q8_0")]
    chosen: dict[str, Any] = {"seq_len": SEQ_LEN, "gguf": files, "card": True, "dtype": "float32"}
    return PerplexityConfig(str(folder), str(data), **{**chosen, **settings})


def test_the_card_has_the_perplexity_of_each_file(folder, named_corpus, tmp_path, capsys):
    out = tmp_path / "scores.json"
    before = (folder / "README.md").read_text()
    for _ in range(2):
        settings = {"tokens": TOKENS, "out": str(out), "overwrite": True}
        perplexity(config(folder, named_corpus.folder, **settings))
    scores = json.loads(out.read_text())
    exact, rounded = (scores["gguf"][f"{type}.gguf"] for type in ("f32", "q8_0"))
    assert exact["loss"] == pytest.approx(scores["loss"], abs=1e-5)
    assert 1e-5 < abs(rounded["loss"] - scores["loss"]) < 0.1
    for source, entry in scores["sources"].items():
        assert exact["sources"][source] == pytest.approx(entry, abs=1e-5)
    card = (folder / "README.md").read_text()
    assert card.startswith(before)
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == [
        *("| file", "| this folder, float32 in transformers", "| f32.gguf", "| q8_0.gguf"),
    ]
    assert rows[2].endswith("0.0000 |")
    assert rows[3].endswith(f" {rounded['loss'] - scores['loss']:+.4f} |")
    assert f"held-out tokens of {named_corpus.folder.name} in sequences of 12" in card
    assert "q8_0.gguf, sequences of 12" in capsys.readouterr().out


def test_sequences_beyond_the_context_are_refused(folder, named_corpus):
    with pytest.raises(InputError, match=r"seq_len=96: the context of .* Lower seq_len to"):
        perplexity(config(folder, named_corpus.folder, seq_len=96, tokens=200))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"card": True}, "card=true: requires gguf"),
        ({"gguf": ["a/x.gguf", "b/x.gguf"]}, "two files have the same name"),
    ],
)
def test_settings_are_checked(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        PerplexityConfig("model", "data", SEQ_LEN, **settings)


def test_a_section_of_a_card_is_replaced():
    card = "# model\n\nAbout.\n"
    once = with_section(card, "Files", "one")
    assert once == "# model\n\nAbout.\n\n## Files\n\none\n"
    more = f"{once}\n## Use\n\nCarefully.\n"
    assert with_section(once, "Files", "two") == once.replace("one", "two")
    assert with_section(more, "Files", "two") == more.replace("one", "two")
