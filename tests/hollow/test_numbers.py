"""The numbers of a step are those of the committed text; see `numbers.py`."""

from __future__ import annotations

import pytest
import torch

from tests.hollow.cases import HELD
from tests.hollow.numbers import check_numbers


@pytest.mark.parametrize("case", HELD)
def test_the_numbers_of_a_step_are_those_held(case, rehearse):
    check_numbers(case, rehearse(**HELD[case]).step, torch.__version__)
