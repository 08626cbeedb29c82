"""A run that is finished ends in a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.hooks.report import write_page
from tests.runs import arguments, records


def test_a_finished_run_has_its_page(command, corpus, tmp_path):
    """Begun, stopped, resumed and finished, in two stages: the page is there at the end only."""
    short = {
        "report": True,
        "recipe__stages__short__tokens": 4096,
        "recipe__stages__long__tokens": 4096,
        "checkpoint__every_steps": 1,
    }
    run_dir = tmp_path / "run"
    done = command(*arguments(corpus.folder, run_dir, stop_after=1, **short))
    assert done.returncode == 0, done.stderr
    assert not (run_dir / "report.html").exists()
    done = command(*arguments(corpus.folder, run_dir, **short))
    assert done.returncode == 0, done.stderr
    assert f"report: {run_dir / 'report.html'}" in done.stdout
    page = (run_dir / "report.html").read_text()
    assert "Restarted once, at step 1." in page
    assert "finished" in page
    assert len(records(run_dir)) == 4


@pytest.mark.slow
def test_without_a_page_the_run_is_whole(tmp_path: Path, capfd):
    write_page(tmp_path)  # no run folder
    assert "warning: report.html was not written (run=" in capfd.readouterr().err
