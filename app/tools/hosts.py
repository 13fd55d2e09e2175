"""Hosts, as URLs and the operator's lists name them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from yarl import URL

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTED = re.compile(r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,5})")
_MAX_CHARS = 253  # RFC 1035, section 2.3.4


def canonical_host(text: str) -> str:
    """The one spelling of a host: a name in lower-case ASCII (IDNA), or an address without brackets.

    Refuses all but one spelling of an IPv4 address: what ends in a number is one, or nothing
    (https://url.spec.whatwg.org/#ends-in-a-number-checker), and resolvers read `0x7f.1` and `2130706433` as 127.0.0.1.

    Raises:
        ValueError: it is no host, or an odd spelling of one.
    """
    bracketed = text.startswith("[") and text.endswith("]")
    address = _address(text[1:-1] if bracketed else text)
    if address is not None and (address.version == 6 or not bracketed):
        return str(address)
    name = (text if text.isascii() else _idna(text)).lower()
    labels = name.split(".")
    if len(name) > _MAX_CHARS or not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        raise ValueError("should be a host's name, or an address in its usual spelling")
    return name


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`name`, `*.name` (all names below it, not itself), an address, or `*`; with `:port` for that port only."""

    host: str
    below: bool = False
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Raises: ValueError."""
        text = text.strip()
        ported = _PORTED.fullmatch(text)
        host, port = (ported[1], int(ported[2])) if ported else (text, None)
        if port is not None and not 0 < port < 65536:
            raise ValueError("should have a port from 1 to 65535")
        if host == "*":
            return cls("", below=True, port=port)
        below = host.startswith("*.")
        name = canonical_host(host.removeprefix("*."))
        if below and _address(name) is not None:
            raise ValueError("should be one address, or *. before a name")
        return cls(name, below=below, port=port)

    @property
    def is_any(self) -> bool:
        """Whether it is `*`: every name and every address."""
        return self.below and not self.host

    def matches(self, host: str, port: int | None = None) -> bool:
        """
        Args:
            host: canonical.
            port: None matches patterns without a port only.
        """
        if self.port is not None and port != self.port:
            return False
        if self.is_any:
            return True
        return host.endswith("." + self.host) if self.below else host == self.host


@dataclass(frozen=True, slots=True)
class HostPatterns:
    """Several patterns; none of them, no host."""

    patterns: tuple[HostPattern, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> HostPatterns:
        """Raises: ValueError, with the pattern that cannot be used."""
        patterns: list[HostPattern] = []
        for text in texts:
            try:
                patterns.append(HostPattern.parse(text))
            except ValueError as error:
                raise ValueError(f"{text!r} {error}") from error
        return cls(tuple(patterns))

    def match(self, host: str, port: int | None = None) -> bool:
        return any(pattern.matches(host, port) for pattern in self.patterns)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in host:  # a zone is this machine's affair
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _idna(host: str) -> str:
    try:
        return URL.build(scheme="http", host=host).raw_host or ""
    except ValueError:
        return ""
