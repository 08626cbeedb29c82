"""The outputs of commands, and the rule that Headwater replaces only its own files.

An output is rejected before the work begins if its path holds anything that Headwater did not make
or, without `overwrite=true`, anything at all. `conf.output_kinds` lists the kinds of outputs, and
`conf.files` writes them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conf import files
from conf.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (
    *DISK_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.EBUSY, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.ELOOP),
)
"""Error numbers which mean that a path cannot be written to."""


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder that commands make.

    noun: name with its article, for messages.
    is_made: returns True if Headwater made this file or folder.
    owns: for folders, returns a predicate on relative names that is True for the files that
        Headwater wrote; None for files.
    """

    noun: str
    is_made: Callable[[Path], bool]
    owns: Callable[[Path], Callable[[str], bool]] | None = None


@dataclass(frozen=True)
class Output:
    """A file or folder that a command makes.

    given: the path as the user gave it, in the setting that `key` names.
    inputs: files and folders that the command reads. The output must neither be one of them nor
        contain one.
    """

    given: str | Path
    kind: Kind
    overwrite: bool = False
    inputs: Sequence[str | Path | None] = field(default=())
    key: str = "out"

    @property
    def path(self) -> Path:
        """Returns the path to write, which is the target if a symbolic link is given."""
        return Path(os.path.realpath(self.given))

    def check(self, found: str | None = None) -> None:
        """Raises InputError if the output cannot be written or may not be replaced.

        found: description of what the path holds, if more than its kind is known.
        """
        self.check_foreign()
        if not self.overwrite and self._holds_something():
            raise self._error(
                f"{found or self.kind.noun} already exists there",
                f"Choose another {self._word}, or set overwrite=true",
            )

    def check_foreign(self) -> None:
        """Raises InputError if the path holds foreign files or cannot be written.

        It also removes the staging folders that killed processes left there.
        """
        with self._errors_as_sentences():
            self._check_place()
            files.clean(self.path)
            self._check_content()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yields an empty folder that becomes the output on exit; an error leaves no output."""
        self.check()
        with self._errors_as_sentences(), files.staging(self.path) as staging:
            new = staging / files.NEW
            new.mkdir()
            yield new
            self._put(new)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Yields the path of a file to write, which becomes the output on exit.

        An error leaves no output. Other files in the same folder are removed.
        """
        self.check()
        with self._errors_as_sentences(), files.staging(self.path) as staging:
            new = staging / files.NEW
            yield new
            self._put(new)

    def write(self, content: str | bytes) -> None:
        """Writes the output file either completely or not at all."""
        with self.file() as new:
            new.write_bytes(content.encode() if isinstance(content, str) else content)

    def put(self, made: Path) -> None:
        """Renames a finished folder to the output's path, which must be on the same file system.

        The caller removes the old output afterwards; `files.put` states where it is then.
        """
        with self._errors_as_sentences():
            self._put(made)

    def _put(self, made: Path) -> None:
        self._check_content()  # the path may have been written in the meantime
        files.put(made, self.path, replace=self.overwrite or not self._holds_something())

    @property
    def _word(self) -> str:
        return "file" if self.kind.owns is None else "folder"

    def _holds_something(self) -> bool:
        path = self.path
        if path.is_dir():
            return any(path.iterdir())
        return os.path.lexists(path) and not (path.is_file() and path.stat().st_size == 0)

    def _check_place(self) -> None:
        given = os.fspath(self.given)
        if os.path.basename(given.rstrip("/")) in ("", ".", ".."):
            raise self._error(
                "the path does not end with a name", f"Give the path of a new {self._word}"
            )
        path = self.path
        if Path.cwd().is_relative_to(path):
            raise self._error(
                "this is the current folder or one of its parents",
                f"Give the path of a new {self._word}",
            )
        for used in self.inputs:
            if used is not None and Path(os.path.realpath(used)).is_relative_to(path):
                raise self._error(
                    f"this path is or contains {used}, which the command reads",
                    f"Choose another {self._word}",
                )
        parent = next(folder for folder in path.parents if os.path.lexists(folder))
        if not parent.is_dir():
            raise self._error(f"{parent} is not a folder", f"Choose another {self._word}")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise self._error(f"{parent} is not writable", f"Choose another {self._word}")

    def _check_content(self) -> None:
        path, owns = self.path, self.kind.owns
        if os.path.lexists(path) and path.is_dir() != (owns is not None):
            what = "a folder" if path.is_dir() else "a file"
            raise self._error(f"this is {what}", f"Give the path of a {self._word}")
        if not self._holds_something():
            return
        if owns is None and not path.is_file():
            raise self._error("this is not a regular file", "Give the path of a regular file")
        foreign: str | None = None
        if not self.kind.is_made(path):
            foreign = _first_name(path) if owns else ""
        elif owns is not None:
            is_ours = owns(path)
            foreign = next((name for name in _names(path) if not is_ours(name)), None)
        if foreign:
            raise self._error(
                f"the folder contains {foreign}, which is not part of {self.kind.noun} made by "
                "Headwater",
                "Choose another folder",
            )
        if foreign is not None:
            raise self._error(
                f"the file is not {self.kind.noun} made by Headwater", "Choose another file"
            )

    def _error(self, wrong: str, advice: str) -> InputError:
        return InputError(f"{self.key}={self.given}: {wrong}. {advice}.")

    @contextmanager
    def _errors_as_sentences(self) -> Iterator[None]:
        """Converts an OSError about this path to an InputError."""
        try:
            yield
        except OSError as error:
            if error.errno in DISK_FULL:
                advice = f"Free some space, or choose another {self._word}"
            elif error.errno in REFUSED and self._is_about(error):
                advice = f"Choose another {self._word}"
            else:
                raise
            raise self._error(f"writing failed ({error.strerror})", advice) from None

    def _is_about(self, error: OSError) -> bool:
        named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name]
        return any(self.path.is_relative_to(name) or files.is_staged(name) for name in named)


def _names(folder: Path) -> Iterator[str]:
    """Yields the relative names of all files and links in a folder, without following links."""
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in [*names, *links]:
            yield os.path.relpath(os.path.join(where, name), folder)


def _first_name(folder: Path) -> str:
    return min(path.name for path in folder.iterdir())
