"""Model cards as the Hub reads them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from conf.errors import InputError
from conf.model_card import (
    CardConfig,
    front_matter,
    inherited_metadata,
    markdown_table,
    model_card,
)


def test_a_card_has_metadata_a_table_and_an_example():
    card = model_card("tiny", "A model.", {"steps": "20"}, "print(model)\n")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    assert body.startswith("# tiny\n\nA model.\n\n")
    assert "|  |  |\n|---|---|\n| steps | 20 |" in body
    code = body[body.index("```python\n") + 10 : body.rindex("```")]
    compile(code, "card", "exec")
    assert code.endswith("\nprint(model)\n")


def test_further_metadata():
    header = front_matter({"tags": ["a"]}).strip("-\n")
    assert yaml.safe_load(header)["tags"] == ["a"]


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["a"], [["b|c"]]) == "| a |\n|---|\n| b/c |"


def test_metadata_is_what_the_hub_accepts(tmp_path):
    config = CardConfig("apache-2.0", "owner/base", ["owner/text"], ["python"])
    card = ModelCard(model_card("tiny", "A model.", {}, metadata=config.metadata({})))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "base_model": "owner/base",
        "datasets": ["owner/text"],
        "tags": ["headwater", "python"],
    }
    wrong: tuple[tuple[str, Any], ...] = (
        ("base_model", "/mnt/models/base"),
        ("base_model", "../base"),
        ("datasets", ["a/b/c"]),
        ("license", "Apache 2"),
    )
    for name, value in wrong:
        with pytest.raises(InputError, match=rf"^card\.{name}=.* Give "):
            CardConfig(**{name: value})


def test_what_a_model_inherits(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nbase_model: a/parent\ntags:\n- chat\n---\n# A published model\n"
    )
    assert inherited_metadata(tmp_path) == {"license": "mit"}
    given = CardConfig(base_model="a/published", datasets=["a/text"])
    made = given.metadata(inherited_metadata(tmp_path))
    (tmp_path / "README.md").write_text(model_card("own", "A model.", {}, metadata=made))
    assert inherited_metadata(tmp_path) == {
        "license": "mit",
        "base_model": "a/published",
        "datasets": ["a/text"],
        "tags": ["headwater"],
    }
    assert CardConfig().metadata(inherited_metadata(tmp_path)) == made
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert inherited_metadata(tmp_path) == {}
    assert inherited_metadata(tmp_path / "none") == {}
