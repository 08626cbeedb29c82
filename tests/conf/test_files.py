"""Files and folders appear whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conf import files
from conf.errors import InputError
from conf.output_kinds import RESULTS
from conf.outputs import Kind, Output

ROOT = Path(__file__).parent.parent.parent
LETTER = Kind(
    "a letter",
    lambda folder: (folder / "signature").is_file(),
    lambda _: lambda name: name in ("signature", "text", "pages/one"),
)
CHILD = """
import os, signal, sys
from pathlib import Path
from conf import files
from tests.conf.test_files import LETTER, write_letter
from conf.outputs import Output

def dies(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

{fault}
write_letter(Output(sys.argv[1], LETTER, overwrite=True), "new")
"""
FAULTS = {
    "in the work": "Path.write_text = dies",
    "before it is durable": "files.sync = dies",
    "before the exchange": "files.exchange = dies",
    "after the exchange": "files.sync = print; files.sync_folder = dies",
    "before the first of two renames": "files.exchange = lambda *_: False; Path.rename = dies",
    "between two renames": """
files.exchange = lambda *_: False
rename = Path.rename
Path.rename = lambda path, to: rename(path, to) if to.name == "new.old" else dies()
""",
    "before the old one is removed": "files.shutil.rmtree = dies",
}


def write_letter(output: Output, text: str) -> None:
    """Makes a folder of this test's own kind."""
    with output.folder() as folder:
        (folder / "signature").touch()
        (folder / "text").write_text(text)
        (folder / "pages").mkdir()
        (folder / "pages" / "one").touch()


def killed(fault: str, out: Path) -> None:
    """Writes a letter in a process that is killed at a certain moment."""
    code = textwrap.dedent(CHILD).format(fault=fault.strip())
    process = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kill_leaves_the_old_or_the_new_folder(fault: str, tmp_path: Path) -> None:
    out = tmp_path / "letter"
    write_letter(Output(out, LETTER), "old")
    killed(FAULTS[fault], out)
    assert len(list(tmp_path.glob(".headwater-*"))) == 1
    after = ("after the exchange", "before the old one is removed")
    if fault != "between two renames":  # what a system that cannot exchange has to do
        assert (out / "text").read_text() == ("new" if fault in after else "old")
    with pytest.raises(
        InputError, match="a letter already exists there"
    ):  # any next call cleans up
        Output(out, LETTER).check()
    assert (out / "text").read_text() == ("new" if fault in after else "old")
    assert (out / "pages" / "one").is_file()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("fault", ["in the work", "before it is durable"])
def test_a_kill_leaves_nothing_where_nothing_was(fault: str, tmp_path: Path) -> None:
    out = tmp_path / "letter"
    killed(FAULTS[fault], out)
    assert not out.exists()
    write_letter(Output(out, LETTER), "new")
    assert (out / "text").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "letter"
    write_letter(Output(out, LETTER), "old")

    def work() -> None:
        with Output(out, LETTER, overwrite=True).folder() as folder:
            (folder / "signature").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (out / "text").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_in_a_new_place_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Output(tmp_path / "letter", LETTER).folder():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_work_under_way_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """Two calls for one output do not meet; the later one to end finds the place taken."""
    out = tmp_path / "letter"

    def work() -> None:
        with Output(out, LETTER).folder() as first:
            (first / "text").write_text("first")
            write_letter(Output(out, LETTER), "second")
            assert (first / "text").read_text() == "first"

    with pytest.raises(InputError, match="writing failed"):
        work()
    assert (out / "text").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_what_comes_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "letter"

    def work() -> None:
        with Output(out, LETTER, overwrite=True).folder():
            out.mkdir()
            (out / "thesis.txt").write_text("mine")

    with pytest.raises(InputError, match=r"the folder contains thesis\.txt"):
        work()
    assert (out / "thesis.txt").read_text() == "mine"
    result = tmp_path / "results.json"
    (tmp_path / "made").write_text("ours")
    result.write_text("mine")
    with pytest.raises(FileExistsError):
        files.put(tmp_path / "made", result, replace=False)
    assert result.read_text() == "mine"


def test_folders_of_others_that_look_temporary_stay(tmp_path: Path) -> None:
    out = tmp_path / "letter"
    others = ["letter.tmp", "letter.old", ".letter.tmp", ".headwater-mine"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "note").write_text("mine")
    write_letter(Output(out, LETTER), "new")
    write_letter(Output(out, LETTER, overwrite=True), "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "letter"])


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"out=.*: writing failed \(No space left.*Free some space"),
        Output(tmp_path / "letter", LETTER).folder(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_work_stay_errors(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), Output(tmp_path / "letter", LETTER).folder():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/somewhere/else")


@pytest.mark.parametrize("out", [".", "..", "/", "sub/..", "sub/.", "sub/../"])
def test_a_place_needs_a_name(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"out=\S+: the path does not end with a name\. Give"):
        Output(out, LETTER, overwrite=True).check()


def test_places_that_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where they look like Headwater's own work."""
    run, here = tmp_path / "runs" / "mine", tmp_path / "project" / "here"
    for folder in (run, run.parent, here, here.parent):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "signature").touch()
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "to_here").symlink_to(here)
    monkeypatch.chdir(here)
    for out in (run, run.parent, tmp_path / "link", "../../runs/mine/../mine"):
        with pytest.raises(
            InputError, match=r": this path is or contains .*mine, which the command reads"
        ):
            Output(out, LETTER, True, inputs=[None, run]).check()
    for out in (here, here.parent, "../here", tmp_path / "to_here"):
        with pytest.raises(InputError, match=": this is the current folder or one of its parents"):
            Output(out, LETTER, True).check()
    Output(run / "export", LETTER, inputs=[run]).check()


def test_files_and_folders_are_not_mixed_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"file: this is a file\. Give the path of a folder\."):
        Output(tmp_path / "file", LETTER, True).check()
    with pytest.raises(InputError, match=r"x: .*file is not a folder\. Choose another folder\."):
        Output(tmp_path / "file" / "x", LETTER, True).check()
    with pytest.raises(InputError, match=r"folder: this is a folder\. Give the path of a file\."):
        Output(tmp_path / "folder", RESULTS, True).check()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: this is not a regular file\."):
        Output(tmp_path / "pipe", RESULTS, True).check()
    with pytest.raises(InputError, match="writing failed \\(File name too long\\)"):
        Output(tmp_path / ("n" * 300), LETTER).check()


def test_what_holds_nothing_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_letter(Output(tmp_path / "folder", LETTER), "new")
    assert (tmp_path / "folder" / "text").read_text() == "new"
    (tmp_path / "file").touch()
    Output(tmp_path / "file", RESULTS).write('{"format": 1, "models": {}}')
    with pytest.raises(
        InputError, match=r"a file of scores already exists there\. .*overwrite=true"
    ):
        Output(tmp_path / "file", RESULTS).write("{}")
    Output(tmp_path / "file", RESULTS, overwrite=True).write("{}")
    assert (tmp_path / "file").read_text() == "{}"


def test_a_file_among_ours_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "letter"
    write_letter(Output(out, LETTER), "old")
    (out / "pages" / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"the folder contains pages/notes\.txt, which is not part"
    ):
        write_letter(Output(out, LETTER, overwrite=True), "new")
    (out / "pages" / "notes.txt").unlink()
    (out / "linked").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"the folder contains linked, which"):
        write_letter(Output(out, LETTER, overwrite=True), "new")
    assert (out / "text").read_text() == "old"


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "letter").symlink_to(tmp_path / "disk" / "letter")
    write_letter(Output(tmp_path / "letter", LETTER), "old")
    write_letter(Output(tmp_path / "letter", LETTER, overwrite=True), "new")
    assert (tmp_path / "letter").is_symlink()
    assert (tmp_path / "disk" / "letter" / "text").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["letter"]


def test_both_ways_to_replace_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(content)
    files.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "text").read_text() == "2"
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    files.put(tmp_path / "a", tmp_path / "b", replace=True)
    assert (tmp_path / "b" / "text").read_text() == "2"
    assert (files.old_of(tmp_path / "a") / "text").read_text() == "1"
