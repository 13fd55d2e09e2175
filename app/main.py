"""create_app(): the HTTP application of one replica, with the replica behind it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypedDict

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import build_api
from app.api.traced import TracedRequests
from app.engine.store_errors import StoreUnavailable, reason_of
from app.llm.providers_file import ProvidersFileError
from app.replica.description import MAX_BODY_BYTES
from app.replica.lifespan import running_replica
from app.services.agent_files import AgentFileError
from app.services.policy_modules import PolicyModuleError
from app.settings import Settings
from app.telemetry.logs import get_logger
from app.telemetry.sdk_disabled import sdk_disabled
from app.tools.errors import ToolError

if TYPE_CHECKING:
    from app.telemetry.process import Telemetry

log = get_logger(__name__)


class ForServer(TypedDict):
    """What the server learns from the application's lifespan: `drain` begins to stop, and the task that it returns ends
    when no run is under way any more. Requests are answered until the lifespan ends. `under_way` counts those runs."""

    drain: Callable[[], asyncio.Task[None]]
    under_way: Callable[[], int]


def create_app(settings: Settings) -> FastAPI:
    """The application of one replica. Nothing is connected before its lifespan starts."""

    telemetry = _telemetry(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[ForServer]:
        try:
            async with running_replica(settings, telemetry) as replica:
                app.state.services = replica.services
                yield ForServer(drain=replica.drain, under_way=lambda: replica.under_way)
        except (StoreUnavailable, ToolError, ProvidersFileError, AgentFileError, PolicyModuleError) as reason:
            log.error("cannot_start", reason=reason_of(reason) if isinstance(reason, StoreUnavailable) else str(reason))
            sys.exit(3)

    app = build_api(lifespan=lifespan, max_body_bytes=MAX_BODY_BYTES)
    if telemetry is not None:
        app.add_middleware(TracedRequests, telemetry.tracing(content=settings.telemetry_content))
    app.add_middleware(_ToldFailure)
    return app


def _telemetry(settings: Settings) -> Telemetry | None:
    """Where traces go; ends the process where the variables of OpenTelemetry say what cannot be done."""
    if settings.telemetry == "none":
        return None
    if sdk_disabled(os.environ):
        log.info("telemetry_is_off", telemetry=settings.telemetry, hint="OTEL_SDK_DISABLED is true")
        return None
    # Imported where it is switched on: a service without it does without the exporters too.
    from app.telemetry.process import telemetry_of

    try:
        return telemetry_of(settings.telemetry)
    except ValueError as error:
        log.error("cannot_start", reason=str(error))
        sys.exit(3)


class _ToldFailure:
    """Keeps the traceback of a start that failed for a reason that was told in one line, and of an end that was cut
    short because someone asked for that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def without_trace(message: Message) -> None:
            failed = message["type"] in ("lifespan.startup.failed", "lifespan.shutdown.failed")
            told = failed and isinstance(sys.exception(), SystemExit | asyncio.CancelledError)
            await send({**message, "message": ""} if told else message)

        with suppress(SystemExit):
            await self._app(scope, receive, without_trace)
