"""Where a URL leads, taken apart once."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from yarl import URL

from app.tools.egress.addresses import Address
from app.tools.hosts import canonical_host

_MAX_CHARS = 16_384
_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that can be requested.

    Args:
        url: absolute, http or https, without credentials and fragment; its host is `host`.
        host: canonical.
    """

    url: URL
    host: str
    port: int

    @classmethod
    def of(cls, url: URL) -> Target:
        """
        Raises:
            ValueError: it is no such URL; worded so that it can follow a name of it.
        """
        if url.scheme not in _SCHEMES or not url.raw_host:
            raise ValueError("should be an http:// or https:// URL with a host")
        if url.raw_user is not None or url.raw_password is not None:
            raise ValueError("should have no credentials in it")
        text = str(url)
        if len(text) > _MAX_CHARS:
            raise ValueError(f"should have at most {_MAX_CHARS} characters")
        if not text.isascii() or any(char <= " " or char in '\x7f\\"<>' for char in text):
            raise ValueError("should have every odd character percent-encoded")
        host = canonical_host(url.raw_host)
        if host != url.raw_host.lower() and ":" not in host:
            raise ValueError("should have its host in its usual spelling")
        if not url.port:
            raise ValueError("should have a port from 1 to 65535")
        return cls(url.with_fragment(None), host, url.port)

    @property
    def address(self) -> Address | None:
        """The address that the URL names itself; None for one with a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def origin(self) -> tuple[str, str, int]:
        """RFC 6454, section 4."""
        return self.url.scheme, self.host, self.port
