"""Web archives: pages of WARC and WET files, and archives that are damaged."""

from __future__ import annotations

import gzip
import importlib
import sys

import pytest

from conf.errors import InputError
from data_pipeline.text.corpus import CorpusConfig, SourceConfig
from data_pipeline.text.readers import read_unit
from data_pipeline.text.units import plan_units


def can_import(name):
    """Returns True if a package is installed, with the system libraries that it needs."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


NEEDED = ("datatrove", "warcio", "cchardet", "magic", "trafilatura", "lxml_html_clean")
MISSING = [name for name in NEEDED if not can_import(name)]
needs_web = pytest.mark.skipif(
    bool(MISSING),
    reason=f"the extra web or the system's libmagic is not installed: no {', '.join(MISSING)}",
)
SENTENCE = "The river rises in the hills, and it takes the rain of many small valleys with it. "
HTML = (
    "<html><head><title>{0}</title></head><body><nav><a href='/'>Home</a></nav><article><h1>{0}"
    "</h1><p>{1}</p><p>{2}</p></article><footer>All rights reserved</footer></body></html>"
)


def record(number, kind, payload, content_type, **headers):
    """Returns one record of an archive, compressed as a member of its own."""
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:0000-{number}>",
        "WARC-Target-URI": f"http://example.org/{number}",
        "WARC-Date": f"2024-01-0{number + 1}T00:00:00Z",
        "Content-Type": content_type,
        **{name.replace("_", "-"): value for name, value in headers.items()},
        "Content-Length": str(len(payload)),
    }
    head = "WARC/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v) + "\r\n"
    return gzip.compress(head.encode() + payload + b"\r\n\r\n", mtime=0)


def page(number, html, **headers):
    """Returns the record of a page."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    headers = {"WARC_Identified_Payload_Type": "text/html", **headers}
    return record(number, "response", head + html, "application/http; msgtype=response", **headers)


def html(number):
    return HTML.format(f"Page {number}", SENTENCE * 3, f"Number {number}. " + SENTENCE * 2)


@pytest.fixture
def warc(tmp_path):
    """Four records: about the archive, a page, a picture, and a page in Latin-1."""
    path = tmp_path / "crawl" / "a.warc.gz"
    path.parent.mkdir()
    french = (
        "La rivi\u00e8re na\u00eet tr\u00e8s haut, o\u00f9 l'\u00e9t\u00e9 est d\u00e9j\u00e0 fini."
        * 5
    )
    latin = html(3).replace("Number 3", french).encode("latin-1")
    path.write_bytes(
        record(0, "warcinfo", b"software: x\r\n", "application/warc-fields")
        + page(1, html(1).encode())
        + page(2, b"\x89PNG", WARC_Identified_Payload_Type="image/png")
        + page(3, latin)
    )
    return path


@pytest.fixture
def wet(tmp_path):
    path = tmp_path / "texts" / "a.warc.wet.gz"
    path.parent.mkdir()
    texts = [f"Page {number}\n{SENTENCE}" for number in range(3)]
    path.write_bytes(
        b"".join(
            record(
                n,
                "conversion",
                text.encode(),
                "text/plain",
                WARC_Identified_Payload_Type="text/plain",
            )
            for n, text in enumerate(texts)
        )
    )
    return path


def rows_of(path, kind, **options):
    source = SourceConfig(kind, [str(path)], **options)
    corpus = CorpusConfig(name="x", sources={"s": source})
    return [row for unit in plan_units(corpus) for row in read_unit(unit, source)]


@needs_web
def test_pages_of_a_warc_have_their_text_and_url(warc):
    rows = rows_of(warc, "warc")
    assert [row.position for row in rows] == [1, 3]  # numbers of the records
    assert [row.line for row in rows] == [0, 1]
    assert [row.url for row in rows] == ["http://example.org/1", "http://example.org/3"]
    assert "Number 1. The river rises" in rows[0].text
    assert "rivi\u00e8re na\u00eet" in rows[1].text
    for row in rows:
        assert "Home" not in row.text
        assert "<p>" not in row.text
        assert not row.flaw
    # The text of a page does not depend on the pages before it.
    assert rows_of(warc, "warc") == rows
    assert [row.text for row in rows_of(warc, "warc", text_field="date")] == [
        "2024-01-02T00:00:00Z",
        "2024-01-04T00:00:00Z",
    ]


@needs_web
def test_pages_of_a_wet_have_their_text_as_it_is(wet):
    rows = rows_of(wet.parent, "wet")
    assert [row.text for row in rows] == [f"Page {n}\n{SENTENCE}" for n in range(3)]
    assert [row.url for row in rows] == [f"http://example.org/{n}" for n in range(3)]


@needs_web
def test_each_archive_is_a_unit(warc):
    for name in ("b", "c"):
        (warc.parent / f"{name}.warc.gz").write_bytes(warc.read_bytes() * 2)
    source = SourceConfig("warc", [str(warc.parent)])
    units = plan_units(CorpusConfig(name="x", shard_bytes=100, sources={"s": source}))
    assert sorted(len(list(read_unit(unit, source))) for unit in units) == [2, 4, 4]


@needs_web
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-20], "damaged after record [13] .*truncated.*Download it again"),
        (lambda raw: raw[: len(raw) // 4] + b"garbage", "damaged before its first page"),
        (lambda raw: b"not an archive at all, but text\n" * 9, "damaged before its first page"),
    ],
)
def test_a_damaged_archive_is_named_with_its_record(damage, message, warc):
    warc.write_bytes(damage(warc.read_bytes()))
    with pytest.raises(InputError, match=rf"a\.warc\.gz cannot be read as warc: .*{message}"):
        rows_of(warc, "warc")


@needs_web
def test_a_truncated_archive_without_compression_is_refused(warc):
    raw = gzip.decompress(warc.read_bytes())
    path = warc.with_name("plain.warc")
    path.write_bytes(raw)
    assert len(rows_of(path, "warc")) == 2
    path.write_bytes(raw[:-200])
    with pytest.raises(InputError, match=r"plain\.warc .* damaged after record 1"):
        rows_of(path, "warc")


def test_a_missing_package_is_named(warc, monkeypatch):
    monkeypatch.setitem(sys.modules, "magic", None)
    with pytest.raises(InputError, match=r'extra `web`.*pip install .*"\.\[web\]"'):
        rows_of(warc, "warc")
