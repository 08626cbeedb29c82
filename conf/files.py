"""Writes files and folders atomically: they appear complete or not at all.

An output is made in a staging folder next to it, `.headwater-<hash of its name>-<random>/`, synced
to disk, and renamed into place in one step. The staging folder is locked while its process runs.
Two processes therefore never share one, and the remains of a killed process can be distinguished
from work in progress.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STAGING = ".headwater-"
LOCK = "lock"
NEW = "new"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a small file that Headwater owns, such as one in a run folder."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file, syncs it to disk and renames it to `path`.

    On an error, the temporary file is removed and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yields a new folder next to `out` for this process alone, and removes it afterwards."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _locked_folder(out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def put(made: Path, out: Path, *, replace: bool) -> None:
    """Syncs a file or folder to disk and renames it to `out`, on the same file system.

    Afterwards, a folder that was replaced is at `made` or `old_of(made)`, from which the caller
    removes it. If the system cannot exchange two folders, the old one is renamed first, and
    `restore` puts it back if the process is killed between the two renames.

    Raises:
        FileExistsError: `out` is an existing file and `replace` is not set.
        OSError: `out` is a non-empty folder that may not be replaced, or the system call fails.
    """
    sync(made)
    if made.is_dir():
        if replace and out.is_dir() and not exchange(made, out):
            out.rename(old_of(made))
            made.rename(out)
        elif not (replace and out.is_dir()):
            made.rename(out)  # the system refuses this unless `out` is missing or empty
    elif replace:
        made.replace(out)
    else:
        _rename_to_nothing(made, out)
    sync_folder(out.parent)


def old_of(made: Path) -> Path:
    """Returns the path at which `put` leaves the old folder if folders cannot be exchanged."""
    return made.with_name(made.name + ".old")


def restore(made: Path, out: Path) -> None:
    """Puts the old folder back if a process was killed between the two renames of `put`."""
    if old_of(made).is_dir() and not os.path.lexists(out):
        old_of(made).rename(out)


def discard(folder: Path) -> None:
    """Removes a folder in such a way that a kill never leaves a part of it under its name."""
    if folder.is_dir():
        with staging(folder) as place, suppress(FileNotFoundError):  # already removed
            folder.rename(place / "discarded")


def clean(out: Path) -> None:
    """Removes the staging folders that killed processes left for `out`."""
    if not out.parent.is_dir():
        return
    for folder in out.parent.glob(f"{_prefix(out)}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError as error:
            # Every folder in use has a lock file. The process of this one was killed while making
            # or removing it.
            if error.errno == errno.ENOENT:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(OSError):  # a running process holds the lock, or locks are not supported
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            restore(folder / NEW, out)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def is_staged(path: Path) -> bool:
    """Returns True if a path is inside a staging folder."""
    return any(part.startswith(STAGING) for part in path.parts)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step; returns False if the kernel or file system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def sync(path: Path) -> None:
    """Syncs a file, or a folder with all of its content, to disk, without following links."""
    if not path.is_dir():
        fsync_path(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                fsync_path(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder to disk, if the file system supports it."""
    with suppress(OSError):
        fsync_path(folder)


def fsync_path(path: Path) -> None:
    """Makes the content of a file, or the list of names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(out: Path) -> str:
    return f"{STAGING}{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:12]}-"


def _locked_folder(out: Path) -> tuple[Path, int]:
    """Makes a staging folder and locks it.

    If another process that cleans up removes the folder before it is locked, another name is tried.
    """
    while True:
        folder = out.with_name(_prefix(out) + secrets.token_hex(4))
        folder.mkdir()
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return folder, lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                return folder, lock
            raise
        os.close(lock)


def _rename_to_nothing(made: Path, out: Path) -> None:
    """Renames a file to a name that must not exist yet."""
    try:
        os.link(made, out)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out)) from None
        made.rename(out)
