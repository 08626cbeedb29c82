"""The normal form of URLs, and the step that drops documents of blocked domains."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import InputError
from data_pipeline.cleaning.chain import Chain
from data_pipeline.cleaning.config import CleaningConfig, UrlBlocklistOptions
from data_pipeline.cleaning.url_blocklist import Domains, load
from data_pipeline.cleaning.urls import domains_of, normalized_url, split_url


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://Example.ORG", "example.org"),
        ("https://www.example.org/", "example.org"),
        ("example.org./", "example.org"),
        ("//example.org:443/a/", "example.org/a"),
        ("http://user:pass@example.org:8080/a", "example.org:8080/a"),
        ("example.org:080", "example.org"),
        ("ftp://example.org/a", "ftp://example.org/a"),
        ("  http://exa\nmple.org/a\t ", "example.org/a"),
        ("http://b\u00fccher.example/\u00fc", "xn--bcher-kva.example/%C3%BC"),
        ("http://XN--BCHER-KVA.example/%c3%bc", "xn--bcher-kva.example/%C3%BC"),
        ("http://stra\u00dfe.example", "xn--strae-oqa.example"),
        ("http://example.org/%7ejane/./x/../y", "example.org/~jane/y"),
        ("http://example.org/a?b=2&a=1&&utm_source=x&gclid=y#top", "example.org/a?a=1&b=2"),
        ("http://example.org/?utm_source=x", "example.org"),
        ("http://example.org/#!/page", "example.org#!/page"),
        ("http://example.org\\a\\b", "example.org/a/b"),
        ("http://[2001:DB8::1]:8080/", "[2001:db8::1]:8080"),
        ("http://example.org/A?q=a b", "example.org/A?q=a%20b"),
        ("http:///nothing", "nothing"),
        ("", ""),
        ("http://", ""),
    ],
)
def test_normal_form(url, normal):
    assert normalized_url(url) == normal


@given(st.text(max_size=60))
def test_no_text_raises_an_error(text):
    assert isinstance(normalized_url(text), str)
    for part in domains_of(split_url(text).host):
        assert isinstance(part, str)


@given(
    st.sampled_from(["", "//", "http://", "HTTPS://", "http://www.", "//me:pw@"]),
    st.sampled_from(["a.example", "A.Example.", "a.example:443", "a%2Eexample:0080"]),
    st.sampled_from(["x/y", "./z/../x/y", "x/%79/", "x/y/?utm_id=1&fbclid=2"]),
    st.sampled_from(["", "#top"]),
)
def test_ways_to_write_one_url(start, host, path, end):
    assert normalized_url(f"{start}{host}/{path}{end}") == "a.example/x/y"


def test_domains_of_a_host():
    assert domains_of("a.b.example") == ["a.b.example", "b.example", "example"]
    assert domains_of("192.0.2.7") == ["192.0.2.7"]
    assert domains_of("[2001:db8::1]") == ["[2001:db8::1]"]


LIST = """\ufeff# a comment
bad.example

*.star.example   # another
.dot.example
UPPER.Example.
0.0.0.0 hosts.example
fe80::1%lo0 local.example
https://scheme.example/
port.example:8443
b\u00fccher.example
192.0.2.1
"""
BLOCKED = (
    *("http://bad.example", "https://www.bad.example/page", "HTTP://A.B.BAD.EXAMPLE.:81/x"),
    *("bad.example/x", "//bad.example", "http://me@bad.example", "http://bad%2Eexample/"),
    *("http://star.example", "http://x.star.example", "http://dot.example", "upper.example"),
    *("hosts.example", "local.example", "scheme.example", "http://port.example/", "192.0.2.1/a"),
    *("http://xn--bcher-kva.example", "http://shop.B\u00dcCHER.example"),
)
ALLOWED = (
    *("http://notbad.example", "http://bad.example.org", "http://example", "http://good.example"),
    *("http://good.example/bad.example", "http://good.example/?u=http://bad.example/", ""),
    *("http://2.1", "http://1.192.0.2.1", "http://bad.example@good.example/"),
)


@pytest.fixture
def blocklist(tmp_path):
    path = tmp_path / "domains.txt.gz"
    path.write_bytes(gzip.compress(LIST.encode()))
    return path


def chain_for(*files):
    options = UrlBlocklistOptions([str(file) for file in files])
    config = CleaningConfig(steps=["url_blocklist"], url_blocklist=options)
    return Chain(config, ["url_blocklist"])


def test_a_domain_covers_its_subdomains_however_it_is_written(blocklist):
    chain = chain_for(blocklist)
    for url in BLOCKED:
        outcome = chain.run("text", url)
        assert (outcome.dropped_by, outcome.reason) == ("url_blocklist",) * 2, url
    for url in ALLOWED:
        assert not chain.run("text", url).dropped_by, url
    assert chain.run("text", "http://a.bad.example").note == "bad.example"


def test_several_files_are_read_once_and_their_content_is_part_of_the_fingerprint(
    blocklist, tmp_path
):
    other = tmp_path / "other.txt"
    other.write_text("good.example\n")
    chain = chain_for(blocklist, other)
    assert chain.run("text", "http://good.example").reason
    assert load((str(blocklist), str(other))) is load((str(blocklist), str(other)))
    before = chain.fingerprint()
    other.write_text("fine.example\n")
    assert chain.fingerprint() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good.example\nbad.example/page\n", r"line 2: expected a domain.*'bad\.example/page'"),
        (b"||ads.example^\n", "line 1: expected a domain"),
        (b"one.example, two.example\n", "line 1: expected a domain"),
        (b"# nothing\n\n", "has no domain"),
        ("bad.example\n".encode("utf-16"), "expected UTF-8 text, found UTF-16"),
        (b"caf\xe9.example\n", "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(content, message, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"url_blocklist.files.*{message}"):
        chain_for(path)


def test_a_list_is_needed():
    with pytest.raises(InputError, match=r"url_blocklist.files=\[\]"):
        chain_for()


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=30))
def test_hashes_are_few_bytes_per_domain(hashes):
    domains = Domains(hashes)
    assert len(domains) == len(hashes)
    assert domains._high.nbytes + domains._low.nbytes == 16 * len(hashes)
