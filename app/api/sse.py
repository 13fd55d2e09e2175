"""Events as a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message

from app.engine.events import StoredEvent
from app.engine.store_errors import StoreUnavailable
from app.telemetry.logs import get_logger

MEDIA_TYPE = "text/event-stream"
PING_S = 15
# When the server stops, its streams end by themselves; this is how long they may take before they are cut off.
SHUTDOWN_GRACE_S = 1.0
# The first bytes go out at once, so that proxies and clients see the stream open before anything happens in it.
_OPENING = b": connected\nretry: 1000\n\n"

_log = get_logger(__name__)


def event_stream(
    events: AsyncGenerator[tuple[str, StoredEvent]],
    *,
    headers: dict[str, str] | None = None,
    on_disconnect: Callable[[], Awaitable[object]] | None = None,
    ping_s: float = PING_S,
) -> EventSourceResponse:
    """An answer that sends events as they come, a comment every `ping_s` seconds, and ends when they end.

    Args:
        events: with the id that a reader comes back with; closed when the answer ends, whatever ends it.
        on_disconnect: called if the reader goes away before the end, but not when the server stops.
    """

    async def gone(_: Message) -> None:
        if on_disconnect is not None:
            await on_disconnect()

    return EventSourceResponse(
        _chunks(events),
        headers={
            "Content-Type": MEDIA_TYPE,
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            **(headers or {}),
        },
        ping=ping_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        sep="\n",
        client_close_handler_callable=gone,
        shutdown_grace_period=SHUTDOWN_GRACE_S,
    )


async def numbered(events: AsyncGenerator[StoredEvent]) -> AsyncGenerator[tuple[str, StoredEvent]]:
    """A single run's events with their seq as the id."""
    async with aclosing(events):
        async for event in events:
            yield str(event.seq), event


async def _chunks(events: AsyncGenerator[tuple[str, StoredEvent]]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        yield _OPENING
        try:
            async for cursor, event in events:
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor.encode(), event.type.encode(), event.line())
        except StoreUnavailable as error:
            # The answer has begun: all that is left is to end it well. The reader comes back with its last id.
            _log.warning("stream_ended_early", reason=str(error))
