"""create_app(): the HTTP application of one replica, with the replica behind it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import build_api
from app.engine.store_errors import StoreUnavailable, reason_of
from app.replica import MAX_BODY_BYTES, running_replica
from app.services.agent_files import AgentFileError
from app.services.policy_modules import PolicyModuleError
from app.settings import Settings
from app.telemetry.logs import get_logger
from app.tools.errors import ToolError

log = get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The application of one replica. Nothing is connected before its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        try:
            async with running_replica(settings) as replica:
                app.state.services = replica.services
                with _StopSignal(replica.drain):
                    yield
        except (StoreUnavailable, ToolError, AgentFileError, PolicyModuleError) as reason:
            log.error("cannot_start", reason=reason_of(reason) if isinstance(reason, StoreUnavailable) else str(reason))
            sys.exit(3)

    app = build_api(lifespan=lifespan, max_body_bytes=MAX_BODY_BYTES)
    app.add_middleware(_ToldFailure)
    return app


class _ToldFailure:
    """Keeps the traceback of a start that failed for a reason that was told in one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def without_trace(message: Message) -> None:
            failed = message["type"] == "lifespan.startup.failed" and isinstance(sys.exception(), SystemExit)
            await send({**message, "message": ""} if failed else message)

        with suppress(SystemExit):
            await self._app(scope, receive, without_trace)


class _StopSignal:
    """Calls `begin` as soon as the process is told to stop.

    The server itself first waits for open connections, and only then ends the application: without this, runs would
    lose the grace time to whoever keeps a stream open.
    """

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                self._before[name] = signal.signal(name, self._told)

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin)
        before = self._before[signal.Signals(number)]
        if callable(before):
            before(number, frame)
