"""Connections whose other side does nothing do not stay for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cli.connection import BoundedConnection

PIECE = b"x" * 65536


class Impatient(BoundedConnection):
    receive_within_s = 0.2
    take_within_s = 0.2
    whole_within_s = 0.4


class Endless:
    """Answers with as much as is taken; `ended` as soon as the reader has gone."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        self.ended.set()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            # That the reader has gone is told by the loop, and what is sent to nobody does not wait.
            await asyncio.sleep(0)


async def listening(_scope: Scope, receive: Receive, _send: Send) -> None:
    """Answers nothing, and waits for all that is sent."""
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """The port of a server of that application."""
    config = uvicorn.Config(app, port=0, http=Impatient, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def test_a_reader_who_takes_nothing_is_dropped() -> None:
    """Seen to fail without the timer in `pause_writing`."""
    app = Endless()
    async with serving(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        async with asyncio.timeout(10):
            await app.ended.wait()
        writer.close()


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nhalf"]
)
async def test_a_request_that_never_comes_whole_ends_its_connection(begun: bytes) -> None:
    """Seen to fail without the timer of `_expect`."""
    async with serving(Endless()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        async with asyncio.timeout(10):
            with suppress(ConnectionError):  # closed in an orderly way is as good
                while await reader.read(65536):
                    pass
        writer.close()


async def test_a_reader_who_is_slow_but_reads_is_not_dropped() -> None:
    app = Endless()
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        until = asyncio.get_running_loop().time() + 3 * Impatient.take_within_s
        async with asyncio.timeout(10):
            while asyncio.get_running_loop().time() < until:
                assert await reader.read(65536)
        assert not app.ended.is_set()
        writer.close()
        async with asyncio.timeout(10):
            await app.ended.wait()


@pytest.mark.parametrize(
    "head",
    [
        [b"GET /" + b"x" * 1024] + [b"x" * 1024] * 200,
        [b"GET / HTTP/1.1\r\n"] + [b"A-Header: " + b"x" * 1024 + b"\r\n"] * 200,
    ],
    ids=["line", "headers"],
)
async def test_a_head_without_measure_is_refused(head: list[bytes]) -> None:
    """Seen to fail without the bound of `_count` (headers) and of `_held` (a line that never ends)."""
    async with serving(Endless()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            for piece in head:
                writer.write(piece)
                await writer.drain()
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert (await reader.read(12)) in (b"HTTP/1.1 400", b"")
                while await reader.read(65536):
                    pass
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n",
        b"",
    ],
)
async def test_a_request_that_comes_in_drips_ends_its_connection(begun: bytes) -> None:
    """Seen to fail without the timer of the last byte."""
    async with serving(listening) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        ended = asyncio.create_task(reader.read())
        async with asyncio.timeout(10):
            while not ended.done():
                writer.write(b"x: 1\r\n" if begun else b"\r\n")
                await asyncio.wait({ended}, timeout=0.05)
        with suppress(ConnectionError):
            assert await ended == b""
        writer.close()


async def test_what_is_no_request_is_refused_with_a_problem() -> None:
    async with serving(Endless()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"FOO / HTTP/1.1\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/problem+json" in head
        assert (json.loads(body)["status"], json.loads(body)["code"]) == (400, "validation_error")
        writer.close()


async def test_what_comes_behind_a_request_does_not_cost_it_its_answer() -> None:
    """Seen to fail without the look at the answer under way."""
    begun = asyncio.Event()
    read = asyncio.Event()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        begun.set()
        await read.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the answer"})

    async with serving(answer) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await begun.wait()
        writer.write(b"\x00garbage\r\n\r\n")
        await writer.drain()
        other, behind = await asyncio.open_connection("127.0.0.1", port)
        behind.write(b"garbage\r\n\r\n")
        assert await other.read(), "what came later was refused: what came before it has been read"
        behind.close()
        read.set()
        assert b"the answer" in await reader.read()
        writer.close()
