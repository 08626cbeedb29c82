"""Choosing an objective and its options."""

from __future__ import annotations

import pytest

from conf.errors import InputError
from pretrain.objectives import build_objective
from pretrain.objectives.cross_entropy import CrossEntropy


def test_an_objective_is_built_by_name():
    assert isinstance(build_objective({"name": "cross_entropy"}), CrossEntropy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cros_entropy"}, r"objective\.name=cros_entropy: unknown choice.*cross_entropy"),
        ({"name": "cross_entropy", "scale": 2}, r"objective\.scale=2: unknown option"),
    ],
)
def test_an_unknown_objective_or_option_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        build_objective(config)
