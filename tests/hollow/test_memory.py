"""The planned memory of a step is the peak of torch's allocator, within 10%."""

from __future__ import annotations

import pytest

from model.attention.backends import repeats_kv
from tests.hollow.memory import CASES, LIMIT, compare

TOO_LOW = "2 ranks, CP"
"""The case whose planned memory is too low, measured 1.18 of it, if torch's variable-length
attention takes no groups of heads, as in 2.11: both pieces of a sequence have copies of keys."""


@pytest.mark.parametrize("case", CASES)
def test_the_planned_memory_is_the_measured_peak(case, corpus, tmp_path, request):
    if case == TOO_LOW and repeats_kv("varlen", "cuda"):
        request.applymarker(pytest.mark.xfail(reason="the plan is too low", strict=True))
    compared = compare(case, corpus.folder, tmp_path / "run")
    assert compared.ratio == pytest.approx(1, abs=LIMIT)
