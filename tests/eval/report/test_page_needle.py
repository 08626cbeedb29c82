"""The heat maps of needle tasks in the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from eval.inloop.tasks import training_record
from eval.report.page_needle import short_length
from tests import browser

LENGTHS = (4096, 8192, 16384, 32768, 65536)
DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]


@pytest.fixture
def needle_results(results):
    """Scores of two models: one finds every fact, one only those in 16k tokens at the end."""
    content = json.loads(results.read_text())
    for name, model in content["models"].items():
        for length in LENGTHS:
            found = [name == "pretrained" or (1 - d / 100) * length < 16_384 for d in DEPTHS]
            digits = "".join(str(int(f)) for f in found) * 3 + "01010"
            share = sum(map(int, digits)) / len(digits)
            model["tasks"][f"river_needle_{length}"] = model["tasks"]["which"] | {
                "metrics": {m: {"value": share, "stderr": 0.1} for m in ("acc", "exact_match")},
                "samples": len(digits),
                "each": {"acc": digits, "exact_match": "0" * len(digits)},
                "needle": {"name": "river", "length": length, "depths": DEPTHS, "facts": 4},
            }
    results.write_text(json.dumps(content))
    return results


class Tables(HTMLParser):
    """Collects the rows of the heat maps as text, with the scope of each header cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.scopes: list[str | None] = []
        self.shades: list[str | None] = []
        self.is_open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "table" and found.get("class") == "heat":
            self.is_open = True
            self.tables.append([])
        elif self.is_open and tag == "tr":
            self.tables[-1].append([])
        elif self.is_open and tag in ("th", "td"):
            self.tables[-1][-1].append("")
            if tag == "th":
                self.scopes.append(found.get("scope"))
            else:
                self.shades.append(found.get("style"))

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag != "table"

    def handle_data(self, data: str) -> None:
        if self.is_open and data.strip():
            self.tables[-1][-1][-1] += data.strip()


def test_the_numbers_of_a_map_are_text_in_a_table(page, needle_results):
    text, parsed = page(results=str(needle_results))
    found = Tables(text)
    assert len(found.tables) == 4, "two models, each with acc and exact_match"
    untrained, exact, pretrained, _ = found.tables
    assert untrained[0] == ["depth", "4k", "8k", "16k", "32k", "64k"]
    assert untrained[1] == ["0%", "75", "75", "0", "0", "0"]
    assert untrained[2] == ["25%", "100", "100", "100", "25", "25"]
    assert untrained[5] == ["100%", "75", "75", "75", "75", "75"]
    assert pretrained[1] == ["0%", "75", "75", "75", "75", "75"]
    assert {cell for row in exact[1:] for cell in row[1:]} == {"0"}
    assert set(found.scopes) == {"col", "row"}
    assert found.shades[:3] == ["--heat:0.75", "--heat:0.75", "--heat:0.00"]
    assert "river: right word among the choices, 4 samples per cell, 4 facts" in parsed.text
    assert "Random guessing: 25%." in parsed.text


def test_a_length_that_a_model_was_not_scored_on_is_blank(content, needle_results):
    results = json.loads(needle_results.read_text())
    del results["models"]["untrained"]["tasks"]["river_needle_65536"]
    entry = results["models"]["untrained"]["tasks"]["river_needle_32768"]
    entry["each"] = {"acc": "101"}
    needle_results.write_text(json.dumps(results))
    first = content(results=str(needle_results))["heat_maps"][0]
    assert first["lengths"] == ["4k", "8k", "16k", "32k"]
    last = [row["cells"][-1] and row["cells"][-1]["text"] for row in first["rows"]]
    assert last == ["100", "0", "100", None, None]
    assert "1 to 4 samples per cell" in first["about"]


@pytest.fixture
def scored_lines(lines):
    """A run that scored needle tasks twice, the second time with the facts at the end found."""
    for step, digits in ((10, "0000"), (30, "0101")):
        needle = {"name": "river", "length": 1024, "depths": [0.0, 100.0], "facts": 4}
        entry = {
            "metrics": {"acc": {"value": digits.count("1") / 4, "stderr": None}},
            "samples": 4,
            "each": {"acc": digits},
            "chance": 0.25,
            "needle": needle,
        }
        tasks = {"river_needle_1024": training_record(entry)}
        lines.append({"kind": "eval", "step": step, "tokens": 100 * step, "tasks": tasks})
    return lines


def test_the_last_scores_of_a_run_are_a_map(scored_lines, page):
    last = scored_lines[-1]["tasks"]["river_needle_1024"]
    assert last["depths"] == {"0": {"acc": 0.0}, "100": {"acc": 1.0}}
    text, parsed = page()
    (found,) = Tables(text).tables
    assert found == [["depth", "1k"], ["0%", "0"], ["100%", "100"]]
    assert "step 30" in parsed.text
    assert "2 samples per cell, 4 facts in each text. Random guessing: 25%." in parsed.text


def test_without_needles_there_is_no_map(page, results):
    text, _ = page(results=str(results))
    assert not Tables(text).tables
    assert "Facts found in long texts" not in text


@pytest.mark.parametrize(("tokens", "text"), [(65536, "64k"), (1000, "1,000"), (1024, "1k")])
def test_lengths_are_short(tokens, text):
    assert short_length(tokens) == text


def test_maps_can_be_read(page, needle_results, tmp_path):
    """All numbers are inside their cells on a screen and on a phone."""
    page(results=str(needle_results))
    with browser.page() as tab:
        for width in (1280, 390):
            tab.open(f"file://{tmp_path / 'pages' / 'report.html'}", width, 900)
            assert tab.js("document.documentElement.scrollWidth") == width
            assert tab.js(browser.OVERLAPS) == []
            assert tab.js(TOO_WIDE) == []


TOO_WIDE = """
[...document.querySelectorAll('.heat th, .heat td')].filter((cell) => {
  const table = cell.closest('.scroll');
  return cell.scrollWidth > cell.clientWidth + 1 || table.scrollWidth > table.clientWidth + 1;
}).map((cell) => cell.textContent)
"""


def test_the_style_is_in_the_page(page, needle_results):
    text, _ = page(results=str(needle_results))
    assert re.search(r"\.heat td::before \{[^}]*opacity: calc\(var\(--heat, 0\)", text)
