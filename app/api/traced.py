"""Tracing requests."""

from __future__ import annotations

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry.trace_context import in_context, parent_in
from app.telemetry.tracing import Tracing, failed

# What asks all the time and tells nothing.
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TracedRequests:
    """Plain ASGI: makes a span `{method} {route}` of each request, in the caller's trace if the caller has one.

    https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        method: str = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracing.start.below(
            parent_in(scope["headers"]),
            method if method != "_OTHER" else "HTTP",
            SpanKind.SERVER,
            {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]},
        )
        status = 500

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = context.attach(in_context(span))
        try:
            await self._app(scope, receive, send_seen)
        finally:
            context.detach(token)
            if span.is_recording():
                _describe(span, method, scope, status)
            span.end()


def _describe(span: trace.Span, method: str, scope: Scope, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    route: str | None = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.set_attribute("http.route", route)
        span.update_name(f"{method} {route}")
    if status >= 500:
        failed(span, str(status))
