"""Model cards as the Hub reads them."""

from __future__ import annotations

import yaml

from conf.model_card import front_matter, markdown_table, model_card


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
