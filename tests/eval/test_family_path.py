"""Families from training to a chat model and its scores; `benchmarks/families.py` takes all."""

from __future__ import annotations

import pytest

from tests.family_path import LAYOUTS, FamilyPath

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["smollm3"])
def path(request, command, named_corpus, tmp_path_factory):
    """A family whose run of two ranks is exported."""
    folder = tmp_path_factory.mktemp(request.param)
    made = FamilyPath(request.param, folder, named_corpus, command)
    made.train()
    return made


def test_loss_in_stock_transformers_equals_validation(path):
    assert path.stock_losses() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_takes_the_steps_of_one_process(path, layout):
    assert path.differ(layout) < 1e-4


def test_it_is_killed_and_resumed(path):
    path.kill_and_resume()


def test_it_is_tuned_scored_and_continues_text(path, tasks):
    path.tune()
    path.score(tasks)
    assert path.generate()


def test_it_gets_another_vocabulary(path):
    assert path.remap() < 1e-5
