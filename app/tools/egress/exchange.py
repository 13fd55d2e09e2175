"""A request to the outside, its bounds, its answer, and what a redirect makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from yarl import URL

from app.tools.egress.target import Target
from app.tools.errors import EgressError, EgressRefusedError
from app.tools.hosts import HostPatterns

REDIRECTS = frozenset({301, 302, 303, 307, 308})

_OF_A_BODY = frozenset({"content-type", "content-encoding", "content-language"})
# All that another origin gets to see. Whatever else there is may say who asks.
_ANYWHERE = _OF_A_BODY | {"accept", "accept-language", "user-agent", "idempotency-key"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    Args:
        total_s: seconds from the first lookup to the last byte, redirects included.
        connect_s: seconds until each connection stands, TLS included.
        read_s: seconds between two pieces of an answer.
        body_bytes: of an answer's body, unpacked.
    """

    total_s: float = 30.0
    connect_s: float = 10.0
    read_s: float = 30.0
    body_bytes: int = 2 * 1024 * 1024
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Request:
    """
    Args:
        secret_headers: headers with secrets in them. They go to the target's origin only, and unencrypted only where
            the operator names the way.
        hosts: where redirects may lead; None for wherever else nothing speaks against it.
    """

    method: str
    target: Target
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    secret_headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes | None = field(default=None, repr=False)
    bounds: Bounds = field(default_factory=Bounds)
    hosts: HostPatterns | None = None

    def redirected(self, status: int, location: str) -> Request:
        """What an answer with that status and Location asks for (https://fetch.spec.whatwg.org/#http-redirect-fetch).

        Raises:
            EgressRefusedError: it leads where no request may go, whatever its address.
        """
        try:
            target = Target.of(self.target.url.join(URL(location)))
        except ValueError as error:
            raise EgressRefusedError(f"{self.target.host} redirects to a URL that {error}") from error
        if self.target.url.scheme == "https" and target.url.scheme == "http":
            raise EgressRefusedError(f"{self.target.host} redirects from https to http")
        if self.hosts is not None and not self.hosts.match(target.host, target.port):
            raise EgressRefusedError(
                f"{self.target.host} redirects to {target.host}, which is none of the allowed hosts"
            )
        request = replace(self, target=target)
        if status == 303 or (status in (301, 302) and self.method == "POST"):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_A_BODY}
            request = replace(request, method="GET", headers=headers, body=None)
        if target.origin != self.target.origin:
            headers = {name: value for name, value in request.headers.items() if name.lower() in _ANYWHERE}
            request = replace(request, headers=headers, secret_headers={})
        return request


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Args:
        media_type: as in `application/json`, in lower case; empty if the answer has none.
        charset: as the answer names it, or None.
        is_whole: False for an error's body that was cut at its bound.
    """

    status: int
    body: bytes = field(repr=False)
    media_type: str = ""
    charset: str | None = None
    is_whole: bool = True

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


def too_many_redirects(request: Request) -> EgressError:
    return EgressError(f"{request.target.host} redirects more than {request.bounds.redirects} times")
