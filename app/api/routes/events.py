"""Events: of a run, as a stream or as a list, and of a whole thread."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.api.answers import no_content, raw_answer
from app.api.dependencies import services_of
from app.api.errors import InvalidRequest, ProblemCode
from app.api.openapi import problems, stream
from app.api.route import ApiRoute
from app.api.schemas.event import EventPage
from app.api.schemas.queries import (
    LastEventIdHeader,
    RunIdPath,
    RunStreamQuery,
    SeqPageQuery,
    StreamQuery,
    ThreadIdPath,
)
from app.api.sse import event_stream, numbered

router = APIRouter(route_class=ApiRoute, tags=["events"])

_MAX_DIGITS = 18


@router.get(
    "/runs/{run_id}/events",
    operation_id="stream_run_events",
    summary="Stream a run's events",
    responses={
        204: {"description": "All of a finished run's events were seen; there is nothing to come back for."},
        **stream(ProblemCode.NOT_FOUND, ProblemCode.EVENTS_TRIMMED),
    },
)
async def stream_run_events(
    request: Request,
    run_id: RunIdPath,
    query: Annotated[RunStreamQuery, Query()],
    last_event_id: LastEventIdHeader = None,
) -> Response:
    """From the start or from a place in the log, until the run is over. A reader comes back with its last id.

    With `subagents=true` also the events of the runs below it: the ids are then opaque, and the stream ends when these
    are over too.
    """
    if query.subagents:
        return await _with_subagents(request, run_id, query, last_event_id)
    after = _seq(last_event_id) if last_event_id else query.after
    events = await services_of(request).streams.open_run(
        run_id, after, types=query.wanted(), deltas=query.deltas, reconnect=after > 0
    )
    return no_content() if events is None else event_stream(numbered(events))


@router.get(
    "/runs/{run_id}/events/list",
    operation_id="list_run_events",
    summary="List a run's events, oldest first",
    response_model=EventPage,
    responses=problems(ProblemCode.NOT_FOUND, ProblemCode.EVENTS_TRIMMED),
)
async def list_run_events(request: Request, run_id: RunIdPath, query: Annotated[SeqPageQuery, Query()]) -> Response:
    """The same events as in the stream, byte for byte."""
    page = await services_of(request).streams.list_run(run_id, query.after, query.limit)
    items = b",".join(event.line() for event in page.items)
    return raw_answer(b'{"items":[%b],"next_cursor":%b}' % (items, orjson.dumps(page.next_cursor)))


@router.get(
    "/threads/{thread_id}/events",
    operation_id="stream_thread_events",
    summary="Stream the events of all the thread's runs",
    responses=stream(ProblemCode.NOT_FOUND),
)
async def stream_thread_events(
    request: Request,
    thread_id: ThreadIdPath,
    query: Annotated[StreamQuery, Query()],
    last_event_id: LastEventIdHeader = None,
) -> Response:
    """Stays open while runs come and go. The ids are opaque: a reader comes back with its last one."""
    events = await services_of(request).streams.open_thread(
        thread_id, last_event_id or None, types=query.wanted(), deltas=query.deltas
    )
    return event_stream(events)


async def _with_subagents(request: Request, run_id: str, query: RunStreamQuery, last_event_id: str | None) -> Response:
    if query.after > 0:
        raise InvalidRequest.at("with subagents, come back with the Last-Event-ID instead", "query", "after")
    events = await services_of(request).family_streams.open(
        run_id, last_event_id or None, types=query.wanted(), deltas=query.deltas
    )
    return no_content() if events is None else event_stream(events)


def _seq(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= _MAX_DIGITS):
        raise InvalidRequest.at("should be the id of an event of this stream", "header", "Last-Event-ID")
    return int(last_event_id)
