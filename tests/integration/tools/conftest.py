"""What the tests of outgoing requests share: requests, sites that answer as they are told, names that lead there."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
from yarl import URL

from app.tools.egress import Allowance, Answer, Egress, Request, Target


@dataclass(frozen=True)
class Received:
    """One request as it came in; the names of its headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes | str = b"", status: str = "200 OK", **headers: str) -> bytes:
    """An HTTP answer; `content_type="text/plain"` is the header Content-Type."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Site:
    """A server on loopback that speaks HTTP by hand: a reply by path, or for every path."""

    def __init__(self, replies: dict[str, Reply] | Reply) -> None:
        self._replies = replies
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.received: list[Received] = []
        self.connections = 0
        self.names: list[str | None] = []  # that clients asked a certificate for

    async def start(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()

    def drop(self) -> None:
        """Close the connections that clients keep."""
        for writer in self._writers:
            writer.close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while (request := await _request(reader)) is not None:
                self.received.append(request)
                reply = self._replies if not isinstance(self._replies, dict) else self._replies[request.path]
                if isinstance(reply, bytes):
                    writer.write(reply)
                    await writer.drain()
                else:
                    await reply(writer)
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


StartSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def site() -> AsyncIterator[StartSite]:
    """Start sites; they stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(replies: dict[str, Reply] | Reply, **where: object) -> Site:
            started = Site(replies)
            await started.start(**where)  # type: ignore[arg-type]
            stack.push_async_callback(started.stop)
            return started

        yield start


@dataclass
class Names:
    """A `Lookup` whose names lead where a test says, each time to the next of their addresses."""

    addresses: dict[str, list[list[str]]] = field(default_factory=dict[str, list[list[str]]])
    asked: list[str] = field(default_factory=list[str])

    def lead(self, name: str, *each_time: Sequence[str] | str) -> None:
        self.addresses[name] = [[given] if isinstance(given, str) else list(given) for given in each_time]

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        times = self.addresses.get(host)
        if times is None:
            raise OSError("no such name")
        return times.pop(0) if len(times) > 1 else times[0]


@pytest.fixture
def names() -> Names:
    return Names()


MakeEgress = Callable[..., Egress]


@pytest.fixture
async def egress(names: Names) -> AsyncIterator[MakeEgress]:
    """Make clients that are let to what the arguments name; they are closed with the test."""
    async with AsyncExitStack() as stack:

        def make(*allow: str, tls: ssl.SSLContext | None = None) -> Egress:
            made = Egress(Allowance.parse(allow), lookup=names, tls=tls)
            stack.push_async_callback(made.aclose)
            return made

        yield make


async def get(egress: Egress, url: str, method: str = "GET", **fields: Any) -> Answer:
    """What comes of a request; `fields` are those of `Request`."""
    return await egress.send(Request(method=method, target=Target.of(URL(url)), **fields))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()
