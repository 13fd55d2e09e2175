"""The model server: POST /v1/chat/completions and /v1/embeddings, and GET /v1/models, as OpenAI has them, with faults
on demand.

For other processes: POST /script takes a list of replies as JSON, GET /requests tells what was received,
POST /reset forgets both.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson
from aiohttp import web

from tests.model_server.conventions import conventional_reply
from tests.model_server.embeddings import embeddings_answer
from tests.model_server.reply import Reply

_KEPT_REQUESTS = 1000
_MODELS = ("echo", "stream-100", "tools-3", "slow-60", "wait-5")


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it came, `at` monotonic seconds. `connection` numbers the TCP connections from 1."""

    body: dict[str, Any]
    headers: dict[str, str]
    connection: int
    at: float
    path: str


class ModelServer:
    """Answers by the script while it lasts, then by the conventions for model names.

    Args:
        paths: where completions are asked for, as aiohttp's router writes them.
        otherwise: the answer to a request's body when there is no script left.

    Attributes:
        requests: the last completions that were asked for, oldest first.
        answer: what answers a request when the script has ended; by the conventions unless it is replaced.
        embedding_requests: the last embeddings that were asked for.
        connections: TCP connections that carried a request.
        open: requests being answered.
        aborted: requests whose client left before the answer was whole.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        paths: Iterable[str] = ("/v1/chat/completions",),
        otherwise: Callable[[Mapping[str, Any]], Reply] = conventional_reply,
    ) -> None:
        self._host, self._port = host, port
        self._paths, self._otherwise = tuple(paths), otherwise
        self._script: deque[Reply] = deque()
        self._embedding_fault: Callable[[dict[str, Any]], Reply | None] = no_fault
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()
        self._connection_numbers: dict[Any, int] = {}  # by the client's address and port
        self.requests: deque[RecordedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self.answer: Callable[[RecordedRequest], Reply] = self._conventional
        self.embedding_requests: deque[RecordedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self.open = 0
        self.aborted = 0

    @property
    def connections(self) -> int:
        return len(self._connection_numbers)

    @property
    def root_url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    def script(self, replies: Iterable[Reply | Mapping[str, Any]]) -> None:
        """Queue answers, one for each coming request."""
        self._script.extend(r if isinstance(r, Reply) else Reply.from_json(r) for r in replies)

    def break_embeddings(self, fault: Callable[[dict[str, Any]], Reply | None]) -> None:
        """Answer requests for embeddings by their body with a `Reply`'s status, body and delay, or None for as ever."""
        self._embedding_fault = fault

    async def until(self, condition: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Wait for a state of the server, such as `lambda server: server.aborted == 1`."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for path in self._paths:
            app.router.add_post(path, self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/script", self._take_script)
        app.router.add_get("/requests", self._show_requests)
        app.router.add_post("/reset", self._reset)
        # A handler is cancelled when its client leaves: that is how an abort is seen at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=4096)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        recorded = await self._begin(request, body, self.requests)
        try:
            reply = self._script.popleft() if self._script else self.answer(recorded)
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            if reply.status != 200 or reply.body is not None:
                return web.Response(
                    status=reply.status,
                    body=reply.body_bytes(),
                    content_type=reply.content_type,
                    headers=reply.headers,
                )
            model = body.get("model", "")
            if reply.plain or not reply.streams(request.path, body):
                return web.Response(
                    body=reply.completion(model), content_type="application/json", headers=reply.headers
                )
            return await self._stream(request, reply, model)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.open -= 1
            await asyncio.shield(self._notify())

    async def _embed(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        await self._begin(request, body, self.embedding_requests)
        try:
            reply = self._embedding_fault(body)
            if reply is None:
                return web.Response(body=orjson.dumps(embeddings_answer(body)), content_type="application/json")
            await asyncio.sleep(reply.delay_s)
            return web.Response(
                status=reply.status, body=reply.body_bytes(), content_type=reply.content_type, headers=reply.headers
            )
        finally:
            self.open -= 1
            await asyncio.shield(self._notify())

    async def _begin(self, request: web.Request, body: dict[str, Any], log: deque[RecordedRequest]) -> RecordedRequest:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        number = self._connection_numbers.setdefault(peer, len(self._connection_numbers) + 1)
        headers = {name.lower(): value for name, value in request.headers.items()}
        recorded = RecordedRequest(body, headers, number, time.monotonic(), request.path_qs)
        log.append(recorded)
        self.open += 1
        await self._notify()
        return recorded

    async def _stream(self, request: web.Request, reply: Reply, model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": reply.STREAM_TYPE, **reply.headers})
        await response.prepare(request)
        if reply.first_chunk_delay_s:
            await asyncio.sleep(reply.first_chunk_delay_s)
        pieces = reply.pieces(model)
        for place, piece in enumerate(itertools.cycle(pieces) if reply.endless else pieces):
            if place == reply.cut_after:
                break
            if place and reply.chunk_delay_s:
                await asyncio.sleep(reply.chunk_delay_s)
            await response.write(piece)
        if reply.cut_after is not None:
            await asyncio.sleep(reply.end_delay_s)
            _cut(request, reset=reply.reset)
        elif reply.hold:
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(reply.end_delay_s)
            await response.write_eof()
        return response

    def _conventional(self, request: RecordedRequest) -> Reply:
        return self._otherwise(request.body)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _list_models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "owned_by": "tests"} for name in _MODELS]
        return web.json_response({"object": "list", "data": data})

    async def _take_script(self, request: web.Request) -> web.Response:
        try:
            self.script(orjson.loads(await request.read()))
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"queued": len(self._script)})

    async def _show_requests(self, request: web.Request) -> web.Response:
        requests = [{"body": r.body, "headers": r.headers, "connection": r.connection} for r in self.requests]
        counts = {"connections": self.connections, "open": self.open, "aborted": self.aborted}
        return web.json_response({"requests": requests, **counts}, dumps=lambda data: orjson.dumps(data).decode())

    async def _reset(self, request: web.Request) -> web.Response:
        self._script.clear()
        self.answer = self._conventional
        self._embedding_fault = no_fault
        self.requests.clear()
        self.embedding_requests.clear()
        self.aborted = 0
        return web.json_response({})


def no_fault(_body: dict[str, Any]) -> Reply | None:
    return None


def _cut(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    if reset:
        # Closing with a linger time of zero sends RST in place of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
