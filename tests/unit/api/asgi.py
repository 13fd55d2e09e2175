"""A caller of the application below HTTP, which can go away when it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import ASGIApp


class Caller:
    """One request. `status`, `headers` and `sent` are what came back so far."""

    def __init__(self, app: ASGIApp, method: str, path: str, body: bytes = b"") -> None:
        self._app = app
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._sent = asyncio.Condition()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": None,
            "server": None,
        }
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.sent = b""
        self.task = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))

    def go_away(self) -> None:
        self._gone.set()

    async def until(self, happening: Coroutine[Any, Any, object]) -> None:
        """Wait until something has happened; the request may not end before it does."""
        waiting = asyncio.create_task(happening)
        await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            raise AssertionError(f"the request ended before that: {self.status} {self.sent!r}")

    async def has(self, text: bytes) -> None:
        """Wait until this much has come."""
        await self.until(self._comes(text))

    async def _comes(self, text: bytes) -> None:
        async with self._sent:
            await self._sent.wait_for(lambda: text in self.sent)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        async with self._sent:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            self.sent += message.get("body", b"")
            self._sent.notify_all()
