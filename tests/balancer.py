"""A load balancer as the plainest ones are: it passes bytes on, and goes by what /readyz says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

import httpx

LOOK_EVERY_S = 0.1
_LOOK_WITHIN_S = 2.0
_PIECE = 65536


class Balancer:
    """Connections to it go to one of several replicas each, in turn. Use as an async context manager.

    A replica is given connections if its /readyz was 200 when last looked at, which happens every 100 ms; if it
    refuses one, the next replica gets it. Nothing is known of HTTP but that: a connection stays where it is until one
    side ends it.

    Args:
        urls: of the replicas.

    Attributes:
        url: where it listens.
        given: how many connections each replica was given, whether it took them or not.
        refused: connections that a replica refused although it had been ready.
        homeless: connections that no replica was ready for.
    """

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._ready: set[str] = set()
        self._turn = 0
        self._looks: list[asyncio.Task[None]] = []
        self._looking = {url: asyncio.Lock() for url in urls}
        self._serving: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.given: Counter[str] = Counter()
        self.refused = 0
        self.homeless = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._looks = [asyncio.create_task(self._look_after(url)) for url in self._urls]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._looks:
            task.cancel()
        for end in self._ends:
            end.transport.abort()
        await asyncio.gather(*self._looks, *self._serving, return_exceptions=True)

    def ready(self, url: str) -> bool:
        """Whether that replica is given connections now."""
        return url in self._ready

    @asynccontextmanager
    async def between_two_looks(self, url: str) -> AsyncGenerator[None]:
        """The interval between two looks at that replica takes as long as the block."""
        async with self._looking[url]:
            yield

    async def _look_after(self, url: str) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=url, timeout=_LOOK_WITHIN_S, limits=limits, trust_env=False, verify=False
        ) as http:
            while True:
                async with self._looking[url]:
                    try:
                        ready = (await http.get("/readyz")).status_code == 200
                    except httpx.HTTPError:
                        ready = False
                    (self._ready.add if ready else self._ready.discard)(url)
                await asyncio.sleep(LOOK_EVERY_S)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        ends = {writer}
        self._ends |= ends
        try:
            backend = await self._connected()
            if backend is not None:
                ends.add(backend[1])
                self._ends |= ends
                await asyncio.gather(_pass_on(reader, backend[1]), _pass_on(backend[0], writer))
        finally:
            for end in ends:
                end.close()
            self._ends -= ends
            self._serving.discard(task)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        ready = [url for url in self._urls if url in self._ready]
        self._turn += 1
        for place in range(len(ready)):
            url = ready[(self._turn + place) % len(ready)]
            self.given[url] += 1
            parts = urlsplit(url)
            try:
                return await asyncio.open_connection(parts.hostname, parts.port)
            except OSError:
                self.refused += 1
        self.homeless += 1
        return None


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes, and then its end; a connection that breaks on one side breaks on the other."""
    try:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        with contextlib.suppress(OSError):
            writer.transport.abort()
