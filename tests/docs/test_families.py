"""docs/families.md has every family, in its list and in the table made by the benchmark."""

from __future__ import annotations

import json

from benchmarks.families import PAGE, RESULTS, with_tables
from conf.entry import CONF_DIR
from model.families import FAMILIES
from tests.model.families.parity import LIMITS
from tests.model.test_counts import load


def test_every_family_and_its_choices_are_listed():
    page = PAGE.read_text()
    lines = page.splitlines()
    rows = {n: line for n in FAMILIES for line in lines if line.startswith(f"| `{n}` | `")}
    assert rows.keys() == FAMILIES.keys()
    for path in (CONF_DIR / "model").glob("*.yaml"):
        if not path.stem.startswith(("small_", "demo_")):
            assert path.stem in rows[load(path.stem).architecture]


def test_the_tables_are_those_of_the_results():
    page, figures = PAGE.read_text(), json.loads(RESULTS.read_text())
    assert with_tables(page, figures) == page
    assert figures["parity"].keys() == figures["paths"].keys() == FAMILIES.keys()
    for found in figures["parity"].values():
        for way in ("export", "import"):
            for what, limit in LIMITS.items():
                assert found[way][what] < limit
    stations = [visited for found in figures["paths"].values() for visited in found.values()]
    assert not [visited for visited in stations if "error" in visited]
