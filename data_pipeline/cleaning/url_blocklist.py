"""Drops documents whose URL is in a domain of a blocklist.

The domains of a list are held as sorted 128-bit hashes: 16 bytes per domain, whatever its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from conf.errors import InputError
from conf.text_files import open_text, other_kind, without_mark
from data_pipeline.cleaning.chain import UrlStep, Verdict
from data_pipeline.cleaning.config import CleaningConfig
from data_pipeline.cleaning.urls import domains_of, split_url

KEY = "corpus.cleaning.url_blocklist.files"
PLAIN = re.compile(rb"[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*")
"""A domain in its normal form already, as nearly all lines of a list are."""
HOSTS_FILE = re.compile(r"(?:[\d.]+|[\da-fA-F]*:[\da-fA-F:]*(?:%\w+)?)\s+(?=\S)")
"""The address with which each line of a hosts file begins."""


def make(config: CleaningConfig) -> UrlStep:
    """Makes the step `url_blocklist`. Raises InputError if there is no list, or no domain in it."""
    files = config.url_blocklist.files
    if not files:
        raise InputError(
            f"{KEY}=[]: the step 'url_blocklist' needs a file with one domain per line. Give one, "
            "or remove the step."
        )
    domains = load(tuple(files))

    def step(text: str, url: str) -> Verdict:
        if url:
            for domain in domains_of(split_url(url).host):
                if domain in domains:
                    return Verdict(text, "url_blocklist", domain)
        return Verdict(text)

    return step


class Domains:
    """A set of domains."""

    def __init__(self, hashes: Iterable[bytes]) -> None:
        joined = bytearray()
        for one in hashes:
            joined += one
        # Sorted as two numbers, so that a lookup compares the first and confirms the second.
        pairs = np.frombuffer(joined, ">u8").reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._high: NDArray[np.uint64] = pairs[order, 0].astype(np.uint64)
        self._low: NDArray[np.uint64] = pairs[order, 1].astype(np.uint64)

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, domain: str) -> bool:
        digest = xxh3_128_digest(domain.encode("utf-8", "surrogatepass"))
        high, low = (np.uint64(int.from_bytes(half)) for half in (digest[:8], digest[8:]))
        start = int(self._high.searchsorted(high))
        end = int(self._high.searchsorted(high, "right"))
        return bool((self._low[start:end] == low).any())


@lru_cache(2)
def load(files: tuple[str, ...]) -> Domains:
    """Returns the domains in these files, which are read once per process."""
    return Domains(xxh3_128_digest(domain) for file in files for domain in read_domains(file))


def read_domains(file: str) -> Iterator[bytes]:
    """Yields the domain of each line of a file in its normal form.

    Empty lines and comments are skipped. Raises InputError if a line names no domain, or the file
    has none.
    """
    found = False
    try:
        with open_text(Path(file)) as lines:
            kind = other_kind(lines.peek(4)[:64])
            if kind:
                raise ValueError(f"expected UTF-8 text, found {kind}")
            for number, line in enumerate(lines, 1):
                line = line.strip()
                if not PLAIN.fullmatch(line):
                    line = _domain(line, f"{KEY}: {file}, line {number}")
                if line:
                    found = True
                    yield line
    except (OSError, ValueError) as error:
        raise InputError(
            f"{KEY}: {file} cannot be read ({error}). Check the path, or write the file again."
        ) from None
    if not found:
        raise InputError(f"{KEY}: {file} has no domain. Give a file with one domain per line.")


def _domain(line: bytes, place: str) -> bytes:
    """Returns the domain of a line that is not in its normal form, or b'' if it has none."""
    text = without_mark(line).decode().partition("#")[0].strip()
    if not text or text.startswith(("!", ";", "//")):
        return b""
    address = HOSTS_FILE.match(text)
    text = (text[address.end() :] if address else text).removeprefix("*.").removeprefix(".")
    host, rest = split_url(text).host, split_url(text).rest
    if not host or any(sign in host for sign in " \t,|^*") or rest not in ("", "/"):
        raise InputError(
            f"{place}: expected a domain such as example.org, found {text!r:.80}. Correct the line."
        )
    return host.encode()
