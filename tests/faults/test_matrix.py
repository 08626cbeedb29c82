"""A fast selection of the matrix of faults: rows that no other test covers, once each.

`make faults` runs all of it.
"""

from __future__ import annotations

import pytest

from tests.faults.matrix import ROWS, data, hangs, kills, numbers, starts, storage
from tests.faults.matrix.lab import Lab

FAMILIES = (kills, storage, data, numbers, hangs, starts)
SELECTED = {1: 7, 2: 1, 7: 0, 16: 1, 25: 1, 26: 0, 27: 0, 31: 1, 34: 0, 39: 0}
"""Row -> which of its trials."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", SELECTED)
def test_a_fault_has_its_right_outcome(number, lab):
    row = next(row for row in ROWS if row.number == number)
    outcome = row.trial(lab, SELECTED[number])
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.wrong
    assert not outcome.hang


def test_the_matrix_is_whole():
    """At least 36 of the 40 rows and 200 trials."""
    assert len({row.number for row in ROWS}) >= 36
    assert sum(row.trials for row in ROWS) >= 200
