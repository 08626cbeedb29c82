"""I5: every family in every case agrees with its class in transformers, exported and imported."""

from __future__ import annotations

import json

import pytest

from model.families import FAMILIES
from model.families.folder import hf_config, read_config
from tests.model.families.cases import CASES, case_of
from tests.model.families.parity import LIMITS, SPECIAL, on_export, on_import

ALL = [(family, case) for family, cases in CASES.items() for case in cases]


def test_every_family_has_cases():
    assert CASES.keys() == FAMILIES.keys()
    for family, adapter in FAMILIES.items():
        changed = {key for changes in CASES[family].values() for key in changes}
        assert adapter.features <= changed
        assert {True, False} == {case_of(family, case).tie_embeddings for case in CASES[family]}


@pytest.mark.parametrize(("family", "case"), ALL)
@pytest.mark.parametrize("compare", [on_export, on_import], ids=["export", "import"])
def test_a_family_is_that_of_transformers(compare, family, case, tmp_path):
    found = compare(case_of(family, case), tmp_path)
    for what, difference in found._asdict().items():
        assert difference < LIMITS[what], what


@pytest.mark.parametrize(("family", "case"), ALL)
def test_an_export_is_imported_as_it_was(family, case, tmp_path):
    config = case_of(family, case)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    again = read_config(tmp_path)
    config.name = again.name
    assert again == config
