"""What is done for every request: an id in every answer, an answer to every exception, and the end of a connection."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import services_of
from app.api.errors import ProblemCode, problem
from app.api.request_id import request_id_of
from app.telemetry.logs import get_logger

_log = get_logger(__name__)


class RequestEdge:
    """Plain ASGI: it must neither buffer a stream nor cost a task per request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        header = (b"x-request-id", request_id.encode())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], header]
                if services_of(Request(scope)).health.draining:
                    # The next request should come on a connection that a load balancer has taken elsewhere.
                    kept = [pair for pair in message["headers"] if pair[0] != b"connection"]
                    message["headers"] = [*kept, (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            # The caller went away while it was still sending; there is nobody to answer.
            return
        except Exception:  # noqa: BLE001 - the request's edge: whatever nobody expected ends here
            _log.exception("request_failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if not started:
                detail = "something unexpected went wrong; the request's id helps to find it in the log"
                answer = problem(Request(scope), ProblemCode.INTERNAL, detail)
                await answer(scope, receive, send_with_id)
