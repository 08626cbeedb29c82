"""The language of the project: no text of code, docs, configs and pages has a banned word."""

from __future__ import annotations

import pytest

from tests.docs.language import ROOT, files, findings


def test_no_text_has_a_banned_word():
    found = [str(finding) for path in files([ROOT]) for finding in findings(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "content", "word", "line"),
    [
        ("x.py", '"""Of the run."""\n', "Of ...", 1),
        ("x.py", 'def f():\n    """What it\n    returns."""\n', "What ...", 2),
        ("x.py", "a = 1\n# The file lies\n# here.\n", "lies", 2),
        ("x.py", "# This is\n# no file.\n", "is no", 1),
        ("x.py", 'a = f"path={b!r} is no folder"\n', "is no", 1),
        ("x.py", 'b = ("the run "\n     "goes on")\n', "goes on", 1),
        ("x.md", "# Title\n\nOne row a source.\n", "row a source", 3),
        ("x.md", "```\npython -m a   # beside it\n```\n", "beside", 2),
        ("x.yaml", "key: 1  # for\n# ever\n", "for ever", 1),
        ("x.html", "<p>\nNobody <b>knows</b></p>\n", "Nobody", 2),
    ],
)
def test_a_banned_word_is_found(name, content, word, line, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.language.ROOT", tmp_path)
    (tmp_path / name).write_text(content)
    found = findings(tmp_path / name)
    assert [(finding.word, finding.line) for finding in found] == [(word, line)]
    assert f"{name}:{line}: '{word}'" in str(found[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.py", '"""Returns the `aside` of `beside`."""\n'),
        ("x.py", 'key = "beside"\n'),
        ("x.py", '"""Raises an error if there is no file."""\n'),
        ("x.md", "```\nnobody goes on\n```\n`is no file`: it is no longer there, stands for 1.\n"),
        ("x.yaml", "beside: nobody\n"),
        ("x.html", "<aside>Text</aside>\n"),
    ],
)
def test_code_and_good_english_pass(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.language.ROOT", tmp_path)
    (tmp_path / name).write_text(content)
    assert findings(tmp_path / name) == []
