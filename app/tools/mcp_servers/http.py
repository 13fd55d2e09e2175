"""A server behind a URL: where its name leads, what may come back, and how much.

The `mcp` package speaks streamable HTTP over an `httpx2` client; everything here is the transport below that client, so
it holds for every request, redirects included. (Redirects that leave the server's origin the package does not follow.)
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from app.tools.errors import CallError
from app.tools.mcp_servers.declaration import HttpDeclaration
from app.tools.mcp_servers.flood import Flooded
from app.tools.mcp_servers.link import InboundStream, Link

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host (and port) that may be connected to; raises `CallError` where there are none."""

_CONNECT_S = 10.0
_WRITE_S = 30.0
_FREE_CONNECTION_S = 5.0
_QUIET_S = 300.0  # of a stream that only brings what nobody asked for
_MORE_THAN_A_CALL_S = 5.0
_MAX_CONNECTIONS = 16
_SESSION_ID = "mcp-session-id"
_EVENT_STREAM = "text/event-stream"


@asynccontextmanager
async def http_streams(
    declaration: HttpDeclaration, headers: Mapping[str, str], resolve: Resolve, tls: ssl.SSLContext | None, link: Link
) -> AsyncGenerator[tuple[InboundStream, Any]]:
    """Speak to the server; an HTTP session ends with it.

    Args:
        headers: sent with every request.
        tls: for https; None for the system's certificates.
    """
    timeout = httpx2.Timeout(
        connect=_CONNECT_S,
        read=declaration.timeout_s + _MORE_THAN_A_CALL_S,
        write=_WRITE_S,
        pool=_FREE_CONNECTION_S,
    )
    sent = httpx2.Headers(headers)
    sent["Accept-Encoding"] = "identity"
    client = httpx2.AsyncClient(
        transport=_Transport(link, resolve, tls or ssl.create_default_context()),
        headers=sent,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # as tools have none anywhere
        timeout=timeout,
        trust_env=False,
    )
    async with (
        client,
        streamable_http_client(declaration.url, http_client=client, max_sse_event_size=link.max_bytes) as streams,
    ):
        source, sink = streams
        yield InboundStream(source, link), sink


class _Transport(httpx2.AsyncBaseTransport):
    """Connects to checked addresses only, and bounds what comes back."""

    def __init__(self, link: Link, resolve: Resolve, tls: ssl.SSLContext) -> None:
        self._link = link
        self._resolve = resolve
        limits = httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
        self._inner = httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._sent(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError("the server compressed an answer that was to be plain", request=request)
        if request.method == "POST":
            self._link.http_status = response.status_code if response.is_error else None
            self._link.forgotten |= response.status_code == 404 and _SESSION_ID in request.headers
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        is_events = response.headers.get("content-type", "").startswith(_EVENT_STREAM)
        response.stream = _Body(response.stream, self._link, is_events=is_events, quiet=_is_quiet(request))
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _sent(self, request: httpx2.Request) -> httpx2.Response:
        """Sent to the first of the host's addresses that takes a connection."""
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        try:
            addresses = await self._resolve(request.url.host, port)
        except CallError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        failure = httpx2.ConnectError(f"no address for {request.url.host}", request=request)
        for address in addresses:
            try:
                return await self._inner.handle_async_request(_to(address, request))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = httpx2.ConnectError(str(error) or type(error).__name__, request=request)
        raise failure

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _to(address: str, request: httpx2.Request) -> httpx2.Request:
    """The same request to an address; its Host header, and the name that a certificate must have, stay."""
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    if _is_quiet(request):
        extensions["timeout"] = {**request.extensions.get("timeout", {}), "read": _QUIET_S}
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions=extensions,
    )


def _is_quiet(request: httpx2.Request) -> bool:
    """Whether the answer is a stream of notifications, on which nothing may come for long."""
    return request.method == "GET" or request.headers.get("mcp-method") == "subscriptions/listen"


class _Body(httpx2.AsyncByteStream):
    """An answer's body, counted."""

    def __init__(self, inner: httpx2.AsyncByteStream, link: Link, *, is_events: bool, quiet: bool) -> None:
        self._inner = inner
        self._link = link
        self._is_events = is_events
        self._quiet = quiet
        self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                self._count(chunk)
                yield chunk
        except httpx2.ReadTimeout:
            # The package opens a stream that ended again, but gives up one that broke twice.
            if not self._quiet:
                raise

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        try:
            self._link.gate.take(size=len(chunk))
        except Flooded as error:
            self._link.lose(str(error))
            raise httpx2.StreamError(str(error)) from error
        if not self._is_events and self._size > self._link.max_bytes:
            reason = f"it sent a message of more than {self._link.max_bytes} bytes"
            self._link.lose(reason)
            raise httpx2.StreamError(reason)
