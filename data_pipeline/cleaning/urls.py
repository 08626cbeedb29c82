"""Normal form of URLs, by which pages are compared, and of their hosts.

`docs/cleaning.md` defines the normal form. URLs from crawls need not be valid, so no text raises an
error here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote, unquote

import idna

BLANK = "".join(map(chr, range(33)))
INNER_BLANK = re.compile(r"[\t\r\n]")
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*):(?=[/\\]{2})")
END_OF_HOST = re.compile(r"[/\\?#]")
PORT = re.compile(r":(\d*)$")
IP_ADDRESS = re.compile(r"\[.*\]|(.*\.)?(\d+|0x[0-9a-f]*)")
ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
SIGNS = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}"
"""Signs that `quote` leaves as they are; it always leaves letters, digits and `_.-~`."""
MAX_HOST_CHARS = 1000
TRACKING = frozenset(
    [
        *("gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "yclid", "twclid"),
        *("igshid", "mc_cid", "mc_eid", "_ga", "_gl"),
    ]
)
"""Query parameters that do not select a page, in addition to those that begin with `utm_`."""


class Parts(NamedTuple):
    """The parts of a URL. The host is in its normal form, and the port is '' if it is missing."""

    scheme: str
    host: str
    port: str
    rest: str


def normalized_url(url: str) -> str:
    """Returns the normal form of a URL, or '' if it has no host."""
    scheme, host, port, rest = split_url(url)
    if not host:
        return ""
    scheme = "" if scheme in ("", "http", "https") else f"{scheme}://"
    port = "" if port in ("", "80", "443") else f":{port}"
    before, _, fragment = rest.partition("#")
    path, _, query = before.partition("?")
    path = _without_dots(_escaped(path.replace("\\", "/"))).rstrip("/")
    parameters = sorted(_escaped(part) for part in query.split("&") if _selects_page(part))
    query = "?" + "&".join(parameters) if parameters else ""
    # Before the history API, sites of one page addressed their parts by `#!`.
    fragment = "#" + _escaped(fragment) if fragment.startswith("!") else ""
    return f"{scheme}{host.removeprefix('www.')}{port}{path}{query}{fragment}"


def split_url(url: str) -> Parts:
    """Splits a URL, whose scheme may be missing."""
    url = INNER_BLANK.sub("", url.strip(BLANK))
    found = SCHEME.match(url)
    scheme, start = (found[1].lower(), found.end()) if found else ("", 0)
    while url[start : start + 1] in ("/", "\\"):
        start += 1
    end = END_OF_HOST.search(url, start)
    authority = url[start : end.start() if end else len(url)].rpartition("@")[2]
    port = PORT.search(authority)
    host = authority[: port.start()] if port else authority
    number = port[1].lstrip("0") if port else ""
    return Parts(scheme, normalized_host(host), number, url[end.start() :] if end else "")


def normalized_host(host: str) -> str:
    """Returns a host in lower case, in punycode and without dots at its end."""
    if "%" in host:
        host = unquote(host)
    host = host.strip(BLANK)
    if not host.isascii() and len(host) <= MAX_HOST_CHARS:
        with suppress(UnicodeError):  # a name that is not valid is compared as it is
            host = idna.encode(host, uts46=True).decode()
    return host.lower().strip(".")


def domains_of(host: str) -> list[str]:
    """Returns a normal host and all domains that contain it; for an IP address only itself."""
    if IP_ADDRESS.fullmatch(host):
        return [host]
    labels = host.split(".")
    return [".".join(labels[number:]) for number in range(len(labels))]


def _selects_page(parameter: str) -> bool:
    name = parameter.partition("=")[0].lower()
    return bool(parameter) and not name.startswith("utm_") and name not in TRACKING


def _escaped(text: str) -> str:
    """Returns a part of a URL in which only the characters that need it are percent-encoded."""
    return ESCAPE.sub(_needed_escape, quote(text, safe=SIGNS, errors="replace"))


def _needed_escape(found: re.Match[str]) -> str:
    sign = chr(int(found[0][1:], 16))
    return sign if sign in UNRESERVED else found[0].upper()


def _without_dots(path: str) -> str:
    """Resolves the segments `.` and `..` of a path (RFC 3986, section 5.2.4)."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    return "".join(f"/{segment}" for segment in kept)
