"""The planned memory of a step is the peak of torch's allocator, within 10%."""

from __future__ import annotations

import pytest

from tests.hollow.memory import CASES, LIMIT, compare


@pytest.mark.parametrize("case", CASES)
def test_the_planned_memory_is_the_measured_peak(case, corpus, tmp_path):
    compared = compare(case, corpus.folder, tmp_path / "run")
    assert compared.ratio == pytest.approx(1, abs=LIMIT)
