"""One interface to files on this machine and in object stores.

A remote URL is any URL that `fsspec` can open (`s3://bucket/file`, `gs://`, `https://` ...).
Requests that fail or time out are retried with exponential backoff and full jitter (Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Credentials and endpoints come from
the same environment variables that the store's own tools use (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL_S3`, `FSSPEC_S3_...`). `HEADWATER_RETRIES` sets the number of attempts per
request.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from conf.errors import EXIT_STORAGE, InputError
from conf.files import write_atomically
from data_pipeline.store.threads import in_thread

T = TypeVar("T")
LOCAL_SCHEMES = ("file://", "local://")
READ_AHEAD_BYTES = 8 << 20
PERMANENT_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
STORE_LIBRARIES = (
    *("aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google"),
    *("http", "huggingface_hub", "requests", "s3fs", "ssl", "urllib3"),
)
CREDENTIAL_ERRORS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


class StorageError(InputError):
    """Raised when a request to an object store fails on every attempt.

    Commands then exit with `EXIT_STORAGE`.
    """

    exit_code = EXIT_STORAGE
    every_rank = True


@dataclass(frozen=True)
class Retry:
    """Retry policy of a request.

    Attributes:
        attempts: Number of attempts, including the first.
        timeout_seconds: Time limit per attempt.
        first_seconds: Longest pause after the first failure. It doubles with each further failure.
        longest_seconds: Upper bound of all pauses.
    """

    attempts: int = 8
    timeout_seconds: float = 60.0
    first_seconds: float = 0.5
    longest_seconds: float = 30.0

    def pause(self, number: int) -> float:
        """Returns a random pause in seconds after failure `number`, counted from 0."""
        return random.uniform(0, min(self.longest_seconds, self.first_seconds * 2**number))


def default_retry() -> Retry:
    """Returns the default policy, with the number of attempts from `HEADWATER_RETRIES` if set."""
    return Retry(attempts=int(os.environ.get("HEADWATER_RETRIES", Retry.attempts)))


class FileInfo(NamedTuple):
    """Path, size and version of a file.

    The version changes with the content: it is the ETag, or the time of modification.
    """

    path: str
    size: int
    version: str


def is_remote(url: str | Path) -> bool:
    """Returns True for the URL of an object store, False for a path on this machine."""
    text = str(url)
    return "://" in text and not text.startswith(LOCAL_SCHEMES)


def local_path(url: str | Path) -> Path:
    """Returns the path of a local file, which may be given as a file:// URL."""
    text = str(url)
    for prefix in LOCAL_SCHEMES:
        text = text.removeprefix(prefix)
    return Path(text)


def join(folder: str | Path, name: str) -> str:
    """Returns the path or URL of a file in a folder."""
    return f"{str(folder).rstrip('/')}/{name}"


def list_files(url_or_glob: str | Path) -> list[FileInfo]:
    """Returns the files at a path, in a folder or matched by a glob, sorted by path.

    Folders are listed recursively. The result is empty if there are no such files.

    Raises:
        StorageError: The store does not answer.
    """
    text = str(url_or_glob)
    if not is_remote(text):
        return _list_local(str(local_path(text)))

    def find() -> list[FileInfo]:
        fs, path = _open_store(text)
        fs.invalidate_cache()
        found = fs.glob(path, detail=True) if _is_glob(path) else fs.find(path, detail=True)
        return sorted(
            FileInfo(fs.unstrip_protocol(name), int(about["size"] or 0), _version(about))
            for name, about in found.items()
            if about["type"] == "file"
        )

    try:
        return retrying(find, f"listing {text}")
    except FileNotFoundError:
        return []


def file_info(url: str | Path) -> FileInfo | None:
    """Returns the size and version of a file, or None if it does not exist."""
    text = str(url)
    if not is_remote(text):
        path = local_path(text)
        if not path.is_file():
            return None
        status = path.stat()
        return FileInfo(str(path), status.st_size, str(status.st_mtime_ns))

    def ask() -> FileInfo:
        fs, path = _open_store(text)
        fs.invalidate_cache()
        about = fs.info(path)
        if about["type"] != "file":
            raise FileNotFoundError(text)
        return FileInfo(text, int(about["size"]), _version(about))

    try:
        return retrying(ask, f"reading the size of {text}")
    except FileNotFoundError:
        return None


def read_ranges(
    url: str, ranges: Sequence[tuple[int, int]], retry: Retry | None = None
) -> list[bytes]:
    """Returns the bytes of each range [start, end) of one remote file, as `read_many` does."""
    return read_many([(url, start, end) for start, end in ranges], retry)


def read_many(parts: Sequence[tuple[str, int, int]], retry: Retry | None = None) -> list[bytes]:
    """Returns the bytes of parts (url, start, end) of remote files, which are read concurrently.

    All files must be in one store. Only parts that fail or are incomplete are requested again.

    Raises:
        FileNotFoundError: A file does not exist.
        StorageError: A part failed every retry.
    """
    found: list[bytes | None] = [None] * len(parts)

    def read_missing() -> None:
        wanted = [number for number, data in enumerate(found) if data is None]
        fs, _ = _open_store(parts[0][0])
        paths = [fs._strip_protocol(parts[number][0]) for number in wanted]
        starts = [parts[number][1] for number in wanted]
        ends = [parts[number][2] for number in wanted]
        problem: Exception | None = None
        answers = fs.cat_ranges(paths, starts, ends, on_error="return")
        for number, data in zip(wanted, answers, strict=True):
            expected = parts[number][2] - parts[number][1]
            if isinstance(data, Exception):
                problem = data
            elif len(data) != expected:
                problem = OSError(f"received {len(data)} of {expected} bytes")
            else:
                found[number] = bytes(data)
        if problem is not None:
            raise problem

    if parts:
        others = len({url for url, _, _ in parts}) - 1
        what = f"reading {parts[0][0]}" + (f" and {others} other files" if others else "")
        retrying(read_missing, what, retry)
    return [data for data in found if data is not None]


def fetch(url: str, to: Path) -> Path:
    """Copies a remote file to the local path `to` atomically.

    Raises:
        InputError: The remote file does not exist.
        StorageError: The store does not answer.
    """
    about = file_info(url)
    if about is None:
        raise InputError(f"{url} does not exist. Correct the address, or upload the file.")
    size = about.size

    def write(file: BinaryIO) -> None:
        for start in range(0, size, READ_AHEAD_BYTES):
            end = min(size, start + READ_AHEAD_BYTES)
            file.write(read_ranges(url, [(start, end)])[0])

    write_atomically(to, write)
    return to


def upload(path: Path, url: str) -> None:
    """Copies a local file to a URL. This is atomic, because a PUT request to a store is.

    The time limit grows with the size of the file, by one second per megabyte.

    Raises:
        InputError: The store refuses the credentials.
        StorageError: The store does not answer.
    """
    retry = default_retry()
    seconds = retry.timeout_seconds + path.stat().st_size / 1e6
    policy = replace(retry, timeout_seconds=seconds)

    def put() -> None:
        fs, name = _open_store(url)
        fs.makedirs(fs._parent(name), exist_ok=True)
        fs.put_file(str(path), name)
        fs.invalidate_cache()

    retrying(put, f"writing {url}", policy)


def delete(url: str) -> None:
    """Deletes a remote file if it exists.

    Raises:
        InputError: The store refuses the credentials.
        StorageError: The store does not answer.
    """

    def remove() -> None:
        fs, name = _open_store(url)
        fs.rm_file(name)
        fs.invalidate_cache()

    with contextlib.suppress(FileNotFoundError):
        retrying(remove, f"deleting {url}")


def retrying(call: Callable[[], T], what: str, retry: Retry | None = None) -> T:
    """Returns the result of `call`, which is repeated if the store fails or is slow.

    Args:
        call: The request.
        what: Description of the request, for messages.
        retry: Retry policy; None for the default.

    Raises:
        InputError: Credentials are missing or refused. Neither this nor a missing file is retried.
        StorageError: All attempts failed.
    """
    retry = retry or default_retry()
    problem: Exception | None = None
    for number in range(retry.attempts):
        try:
            return in_thread(call).result(retry.timeout_seconds)
        except Exception as error:
            if isinstance(error, PermissionError) or type(error).__name__ in CREDENTIAL_ERRORS:
                raise InputError(
                    f"{what} was denied ({_one_line(error)}). Check the credentials of the store "
                    "in the environment."
                ) from error
            if not is_transient(error):
                raise
            problem = error
        if number + 1 < retry.attempts:
            time.sleep(retry.pause(number))
    slow = isinstance(problem, TimeoutError)
    reason = f"no answer within {retry.timeout_seconds:g} s" if slow else _one_line(problem)
    raise StorageError(
        f"{what} failed {retry.attempts} times ({reason}). The store or the network is down or "
        "slow. Run the same command again later."
    ) from problem


def is_transient(error: BaseException) -> bool:
    """Returns True if a request that failed with this error may succeed later."""
    if isinstance(error, PERMANENT_ERRORS):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError, TimeoutError)) or library in STORE_LIBRARIES


def _open_store(url: str) -> tuple[Any, str]:
    """Returns the `fsspec` file system of a URL, and the path in it."""
    fs = _store(url.partition("://")[0], os.getpid())
    return fs, fs._strip_protocol(url)


@lru_cache
def _store(protocol: str, _process: int) -> Any:
    """Returns the file system of this process. It is not shared, since forks break connections."""
    import fsspec

    if protocol not in ("s3", "s3a"):
        return fsspec.filesystem(protocol)
    # Otherwise botocore and s3fs would retry as well, inside each of our attempts.
    settings = {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": 10,
        "max_pool_connections": 64,
    }
    fs = fsspec.filesystem(protocol, config_kwargs=settings, skip_instance_cache=True)
    fs.retries = 1
    return fs


def _list_local(text: str) -> list[FileInfo]:
    path = Path(text)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        from glob import glob

        files = [Path(name) for name in glob(text, recursive=True) if Path(name).is_file()]
    found = [(file, file.stat()) for file in files]
    return sorted(
        FileInfo(str(file), about.st_size, str(about.st_mtime_ns)) for file, about in found
    )


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _version(about: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created"):
        if about.get(key) is not None:
            return str(about[key]).strip('"')
    return ""


def _one_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
