"""Sends requests to the outside."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
from multidict import CIMultiDict

from app.telemetry.trace_context import current_headers
from app.tools.egress.allowance import Allowance
from app.tools.egress.body import ACCEPT_ENCODING, read_body
from app.tools.egress.exchange import REDIRECTS, Answer, Request, too_many_redirects
from app.tools.egress.resolver import CheckedResolver, Lookup, system_lookup
from app.tools.egress.target import Target
from app.tools.errors import CallTimeoutError, EgressError

_MAX_CONNECTIONS = 200
_MAX_CONNECTIONS_TO_ONE = 50
_KEEP_ALIVE_S = 30.0
_MAX_BODY_BYTES = 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 8190
_MAX_HEADERS = 128


class Egress:
    """The one client for what tools send outside. Sends each request once, by no proxy, and keeps no cookies. A request
    of a call that is traced says so (`traceparent`), unless the tool has a header of that name.

    Connections are kept for half a minute and used again for the same scheme, host and port. That goes round no check:
    a kept connection leads to an address that was checked for this host and port when it was made, under the same
    rules, since an `Egress` never changes its rules; what leads elsewhere makes a new one.

    Args:
        lookup: how names become addresses.
        tls: for https; None for the system's certificates.
    """

    def __init__(
        self, allowance: Allowance, *, lookup: Lookup = system_lookup, tls: ssl.SSLContext | None = None
    ) -> None:
        self._public = CheckedResolver(allowance, lookup)
        # For secrets without encryption; with connections of its own, which lead nowhere else.
        self._opened = CheckedResolver(allowance, lookup, only_opened=True)
        self.tls = tls
        self._sessions: dict[CheckedResolver, aiohttp.ClientSession] = {}

    async def send(self, request: Request) -> Answer:
        """The answer to a request, after redirects. A body past its bound is refused; an error's is cut.

        Raises:
            EgressRefusedError: it leads, or is redirected, where nothing may go.
            EgressError: there is no answer, or none within the bounds.
            CallTimeoutError: it took too long.
        """
        try:
            async with asyncio.timeout(request.bounds.total_s):
                return await self._followed(request)
        except TimeoutError as error:
            raise CallTimeoutError(f"{request.target.host} took more than {request.bounds.total_s:g} s") from error

    async def addresses(self, host: str, port: int, *, secrets_in_clear: bool = False) -> tuple[str, ...]:
        """The addresses of a host that may be connected to; for clients that connect by themselves, and to these only.

        Args:
            secrets_in_clear: whether secrets go there without encryption.

        Raises: as `CheckedResolver.addresses` does.
        """
        resolver = self._opened if secrets_in_clear else self._public
        return await resolver.addresses(host, port)

    def check(self, target: Target) -> None:
        """Raises: EgressRefusedError, if the target names an address itself that may not be connected to."""
        _check_literal(self._public, target)

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def _followed(self, request: Request) -> Answer:
        for _ in range(request.bounds.redirects + 1):
            async with self._response(request) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or location is None:
                    return await _answer(response, request)
            request = request.redirected(response.status, location)
        raise too_many_redirects(request)

    @asynccontextmanager
    async def _response(self, request: Request) -> AsyncGenerator[aiohttp.ClientResponse]:
        target, bounds = request.target, request.bounds
        if request.body is not None and len(request.body) > _MAX_BODY_BYTES:
            raise EgressError(f"the request's body is larger than {_MAX_BODY_BYTES} bytes")
        in_clear = target.url.scheme == "http" and bool(request.secret_headers)
        resolver = self._opened if in_clear else self._public
        # The connector asks its resolver for names only.
        _check_literal(resolver, target)
        headers = CIMultiDict({"User-Agent": "agent-runner", **current_headers()})
        headers.update(request.headers)
        headers.update(request.secret_headers)
        headers["Accept-Encoding"] = ACCEPT_ENCODING
        try:
            async with self._session(resolver).request(
                request.method,
                target.url,
                headers=headers,
                data=request.body,
                allow_redirects=False,
                ssl=self.tls or True,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=bounds.connect_s, sock_connect=bounds.connect_s, sock_read=bounds.read_s
                ),
            ) as response:
                yield response
        except aiohttp.ConnectionTimeoutError as error:
            raise CallTimeoutError(f"no connection to {target.host} within {bounds.connect_s:g} s") from error
        except aiohttp.ServerTimeoutError as error:
            raise CallTimeoutError(f"nothing came from {target.host} for {bounds.read_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise  # the whole request's time is over
            raise EgressError(f"{target.host} {_failure(error)}") from error

    def _session(self, resolver: CheckedResolver) -> aiohttp.ClientSession:
        if resolver not in self._sessions:
            self._sessions[resolver] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=resolver,
                    use_dns_cache=False,
                    limit=_MAX_CONNECTIONS,
                    limit_per_host=_MAX_CONNECTIONS_TO_ONE,
                    keepalive_timeout=_KEEP_ALIVE_S,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                max_headers=_MAX_HEADERS,
                middlewares=(_sent_once,),
            )
        return self._sessions[resolver]


class _Broken(aiohttp.ClientError):
    """A connection broke after it stood."""


async def _sent_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """The session would send GET, PUT and DELETE again when a connection breaks; but they may have had their effect."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken from error


def _check_literal(resolver: CheckedResolver, target: Target) -> None:
    if (address := target.address) is not None:
        resolver.check(target.host, target.port, address)


async def _answer(response: aiohttp.ClientResponse, request: Request) -> Answer:
    success = 200 <= response.status < 300
    max_bytes = request.bounds.body_bytes if success else min(_MAX_ERROR_BYTES, request.bounds.body_bytes)
    encoding = response.headers.get("Content-Encoding", "")
    body, is_whole = await read_body(response.content.iter_any(), encoding, max_bytes)
    if success and not is_whole:
        raise EgressError(f"the answer of {request.target.host} is larger than {max_bytes} bytes")
    return Answer(
        status=response.status,
        body=body,
        media_type=response.content_type if "Content-Type" in response.headers else "",
        charset=response.charset,
        is_whole=is_whole,
    )


def _failure(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "has no certificate that can be trusted"
        case aiohttp.ClientConnectorError():
            return "cannot be connected to"
        case aiohttp.ClientResponseError():
            return "sent what is no HTTP answer, or headers past their bounds"
        case _:
            return "broke the connection off"
