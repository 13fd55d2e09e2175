"""Hosts: one spelling each, and patterns of them."""

from __future__ import annotations

import pytest

from app.tools.hosts import HostPattern, HostPatterns, canonical_host


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("API.Example.com", "api.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a_b.example", "a_b.example"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ],
)
def test_a_host_has_one_spelling(written: str, host: str) -> None:
    assert canonical_host(written) == host


@pytest.mark.parametrize(
    "written",
    [
        "",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "1.2.3.4.5",
        "１２７.０.０.１",
        "127。0。0。1",
        "example.com.",
        "a..b",
        "-a.example",
        "a b.example",
        "a%2eb.example",
        "user@example.com",
        "fe80::1%eth0",
        "fe80::1%25eth0",
        "[example.com]",
        "[127.0.0.1]",
        "x" * 64,
        "x." * 130 + "example",
    ],
)
def test_odd_spellings_are_no_hosts(written: str) -> None:
    with pytest.raises(ValueError, match="should be a host's name"):
        canonical_host(written)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "matches"),
    [
        ("api.example.com", "api.example.com", None, True),
        ("API.example.com", "api.example.com", 443, True),
        ("api.example.com", "www.api.example.com", 443, False),
        ("api.example.com", "evilapi.example.com", 443, False),
        ("*.example.com", "a.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "evilexample.com", 443, False),
        ("api.example.com:8443", "api.example.com", 8443, True),
        ("api.example.com:8443", "api.example.com", 443, False),
        ("api.example.com:8443", "api.example.com", None, False),
        ("[::1]:8000", "::1", 8000, True),
        ("10.0.0.1", "10.0.0.1", 80, True),
        ("*", "10.0.0.1", 80, True),
        ("*:443", "a.example", 80, False),
    ],
)
def test_patterns_match_whole_hosts_and_the_port_that_they_have(
    pattern: str, host: str, port: int | None, matches: bool
) -> None:
    assert HostPattern.parse(pattern).matches(host, port) is matches


@pytest.mark.parametrize("pattern", ["a.*.b", "*a.b", "http://a.b", "a.b/c", "a.b:0", "a.b:65536", "*.1.2.3.4", "a b"])
def test_a_pattern_that_is_none_is_told(pattern: str) -> None:
    with pytest.raises(ValueError, match="should"):
        HostPatterns.parse(["fine.example", pattern])


def test_no_pattern_matches_no_host() -> None:
    assert not HostPatterns().match("api.example.com", 443)
