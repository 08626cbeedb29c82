"""Mirrors checkpoints in an object store.

The manifest of a checkpoint is uploaded last and deleted first, so a checkpoint in the mirror is
complete if it has a manifest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from conf.errors import InputError
from conf.files import fsync_path
from data_pipeline.store import storage
from data_pipeline.store.remote_file import open_binary
from pretrain.branches.holds import held_steps
from pretrain.checkpoints import files
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.writer_process import WriterError, WriterProcess


def steps(url: str) -> list[int]:
    """Returns the steps of the complete checkpoints in a mirror, newest first.

    May raise StorageError.
    """
    found = []
    for file in storage.list_files(url):
        folder, name = file.path.rsplit("/", 1)
        step = files.step_of(folder.rsplit("/", 1)[-1])
        if step is not None and name == files.MANIFEST:
            found.append(step)
    return sorted(found, reverse=True)


def manifest(url: str, step: int) -> dict[str, Any]:
    """Returns a checkpoint's manifest. Raises StorageError, or ValueError if it is damaged."""
    with open_binary(_file(url, step, files.MANIFEST)) as file:
        return files.parse_manifest(file.read())


def download(folder: Path, url: str, step: int) -> Path:
    """Downloads a checkpoint into a folder, and returns its path. The caller must verify it."""
    final = folder / f"step_{step}"
    temporary = folder / f"step_{step}.tmp-copy"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    names = [files.MANIFEST]
    with contextlib.suppress(ValueError):  # the caller finds the damage when it verifies
        names += manifest(url, step)["files"]
    files.in_parallel(lambda n: storage.fetch(_file(url, step, n), temporary / n), names)
    fsync_path(temporary)
    os.rename(temporary, final)
    fsync_path(folder)
    return final


def upload_missing(folder: Path, url: str, keep: Retention) -> list[int]:
    """Uploads the checkpoints that the mirror lacks, oldest first, and deletes expired ones there.

    Returns the uploaded steps. It runs in the writer process.
    """
    mirrored = set(steps(url))
    uploaded = []
    for path in reversed(files.checkpoints_in(folder)):
        about = files.read_manifest(path)
        step = about["step"]
        if about.get("short_lived") or step in mirrored:
            continue
        files.in_parallel(
            lambda name: storage.upload(path / name, _file(url, step, name)),  # noqa: B023
            about["files"],
        )
        sizes = {
            file.path.rsplit("/", 1)[-1]: file.size
            for file in storage.list_files(f"{url}/step_{step}")
        }
        for name, entry in about["files"].items():
            if sizes.get(name) != entry["bytes"]:
                raise InputError(f"the upload of {_file(url, step, name)} is incomplete.")
        storage.upload(path / files.MANIFEST, _file(url, step, files.MANIFEST))
        uploaded.append(step)
    known = {}
    for step in steps(url):
        with contextlib.suppress(ValueError):
            known[step] = manifest(url, step)
    for step in keep.expired(known, held_steps(folder.parent)):
        storage.delete(_file(url, step, files.MANIFEST))
        for name in known[step]["files"]:
            storage.delete(_file(url, step, name))
    return uploaded


def verify(url: str, step: int) -> str | None:
    """Reads all files of a checkpoint in the mirror, and returns what is wrong, or None."""
    try:
        about = manifest(url, step)["files"]
    except ValueError as error:
        return f"{_file(url, step, files.MANIFEST)} cannot be read ({error})."

    def check(name: str) -> str | None:
        state = xxhash.xxh3_128()
        try:
            with open_binary(_file(url, step, name)) as file:
                while block := file.read(files.BLOCK_BYTES):
                    state.update(block)
        except FileNotFoundError:
            return f"{_file(url, step, name)} is missing."
        if state.hexdigest() != about[name]["xxh3_128"]:
            return f"{_file(url, step, name)} does not match its hash in the manifest."
        return None

    return next((problem for problem in files.in_parallel(check, sorted(about)) if problem), None)


class Uploader:
    """Uploads new checkpoints in a background thread of rank 0, one upload at a time.

    on_result: function (uploaded steps, problem or None), which is called in the thread.
    """

    def __init__(
        self,
        writer: WriterProcess,
        folder: Path,
        url: str,
        keep: Retention,
        seconds: float,
        on_result: Callable[[list[int], str | None], None],
    ) -> None:
        self._call = lambda: writer.call(upload_missing, folder, url, keep, seconds=seconds)
        self._on_result = on_result
        self._requested = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Starts an upload of new checkpoints, now or after the current upload."""
        self._requested.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
            self._thread.start()

    def wait(self) -> None:
        """Waits until everything is uploaded or has failed."""
        if self._thread is not None:
            self._thread.join()
        if self._requested.is_set():  # the request came while the thread was ending
            self._work()

    def _work(self) -> None:
        while self._requested.is_set():
            self._requested.clear()
            try:
                self._on_result(self._call(), None)
            except WriterError as error:
                self._on_result([], f"{error}")


def _file(url: str, step: int, name: str) -> str:
    return f"{url.rstrip('/')}/step_{step}/{name}"
