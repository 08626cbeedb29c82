"""Copies of checkpoints in an object store. The manifest goes there last and away first: what has
one is whole."""

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
from data_pipeline.store import storage
from pretrain.checkpoints import files
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.writer_process import Aside, AsideError


def steps(url: str) -> list[int]:
    """The steps that are there whole, newest first. Raises StorageError."""
    found = []
    for file in storage.list_files(url):
        folder, name = file.path.rsplit("/", 1)
        step = files.step_of(folder.rsplit("/", 1)[-1])
        if step is not None and name == files.MANIFEST:
            found.append(step)
    return sorted(found, reverse=True)


def manifest(url: str, step: int) -> dict[str, Any]:
    """The manifest of a copy. Raises ValueError where it is damaged, StorageError."""
    with storage.open_binary(_file(url, step, files.MANIFEST)) as file:
        return files.parse_manifest(file.read())


def bring(folder: Path, url: str, step: int) -> Path:
    """Copies a checkpoint from the store into a folder; its files are the caller's to verify."""
    final = folder / f"step_{step}"
    temporary = folder / f"step_{step}.tmp-copy"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    names = [files.MANIFEST]
    with contextlib.suppress(ValueError):  # the verdict on what came will say so
        names += manifest(url, step)["files"]
    files.in_parallel(lambda n: storage.fetch(_file(url, step, n), temporary / n), names)
    files.sync(temporary)
    os.rename(temporary, final)
    files.sync(folder)
    return final


def send(folder: Path, url: str, keep: Retention) -> list[int]:
    """Copies to the store what it lacks, oldest first, and removes there what `keep` says; the
    steps that were sent. Runs aside."""
    there = set(steps(url))
    sent = []
    for path in reversed(files.listed(folder)):
        about = files.read_manifest(path)
        step = about["step"]
        if about.get("short_lived") or step in there:
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
                raise InputError(f"{_file(url, step, name)} did not arrive whole.")
        storage.upload(path / files.MANIFEST, _file(url, step, files.MANIFEST))
        sent.append(step)
    known = {}
    for step in steps(url):
        with contextlib.suppress(ValueError):
            known[step] = manifest(url, step)
    for step in keep.gone(known):
        storage.delete(_file(url, step, files.MANIFEST))
        for name in known[step]["files"]:
            storage.delete(_file(url, step, name))
    return sent


def verify(url: str, step: int) -> str | None:
    """None where the files of a copy have their sizes and hashes, else what is wrong."""
    try:
        about = manifest(url, step)["files"]
    except ValueError as error:
        return f"{_file(url, step, files.MANIFEST)} cannot be read ({error})."

    def check(name: str) -> str | None:
        state = xxhash.xxh3_128()
        try:
            with storage.open_binary(_file(url, step, name)) as file:
                while block := file.read(files.BLOCK_BYTES):
                    state.update(block)
        except FileNotFoundError:
            return f"{_file(url, step, name)} is missing."
        if state.hexdigest() != about[name]["xxh3_128"]:
            return f"{_file(url, step, name)} does not have the hash of its manifest."
        return None

    return next((problem for problem in files.in_parallel(check, sorted(about)) if problem), None)


class Copier:
    """Sends what is new, one call after the other, while the training goes on; rank 0 only.

    said: called in the thread with the steps that were sent, or with what is wrong.
    """

    def __init__(
        self,
        aside: Aside,
        folder: Path,
        url: str,
        keep: Retention,
        seconds: float,
        said: Callable[[list[int], str | None], None],
    ) -> None:
        self._call = lambda: aside.call(send, folder, url, keep, seconds=seconds)
        self._said = said
        self._again = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something to send."""
        self._again.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, daemon=True, name="copies")
            self._thread.start()

    def wait(self) -> None:
        """Waits until all is sent, or failed."""
        if self._thread is not None:
            self._thread.join()
        if self._again.is_set():  # it came when the thread was about to end
            self._work()

    def _work(self) -> None:
        while self._again.is_set():
            self._again.clear()
            try:
                self._said(self._call(), None)
            except AsideError as error:
                self._said([], f"{error}")


def _file(url: str, step: int, name: str) -> str:
    return f"{url.rstrip('/')}/step_{step}/{name}"
