from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.sse import event_stream
from app.engine.events import StoredEvent
from app.engine.store_errors import RunNotFound
from app.services.errors import EventsTrimmed, Invalid
from app.services.event_stream import EventPage
from tests.unit.api.asgi import Caller
from tests.unit.api.conftest import StubServices
from tests.unit.api.records import MORNING

FIRST = StoredEvent(1, "run_started", MORNING, '{"type":"run_started"}')
SECOND = StoredEvent(2, "text_delta", MORNING, '{"type":"text_delta","data":{"delta":"a\\u2028b"}}')


class Streams:
    """Two events of a run, or of a thread; and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.closed = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()
        self.nothing_left = False
        self.refusal: Exception | None = None

    async def open_run(self, run_id: str, after: int, **wanted: Any) -> AsyncGenerator[StoredEvent] | None:
        self.asked.append((run_id, after, wanted))
        if self.refusal is not None:
            raise self.refusal
        return None if self.nothing_left else self._events()

    async def open_thread(self, thread_id: str, cursor: str | None, **wanted: Any) -> AsyncGenerator[Any]:
        self.asked.append((thread_id, cursor, wanted))

        async def with_cursors() -> AsyncGenerator[Any]:
            async for event in self._events():
                yield f"cursor-{event.seq}", event

        return with_cursors()

    async def list_run(self, run_id: str, after: int, limit: int) -> EventPage:
        self.asked.append((run_id, after, limit))
        return EventPage([FIRST, SECOND], 2)

    async def _events(self) -> AsyncGenerator[StoredEvent]:
        try:
            yield FIRST
            await self.hold.wait()
            yield SECOND
        finally:
            self.closed.set()


class FamilyStreams:
    """One event of a child run; and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.nothing_left = False

    async def open(self, run_id: str, cursor: str | None, **wanted: Any) -> AsyncGenerator[Any] | None:
        self.asked.append((run_id, cursor, wanted))

        async def events() -> AsyncGenerator[Any]:
            yield "f1.y", StoredEvent(2, "subagent_event", MORNING, '{"type":"subagent_event"}')

        return None if self.nothing_left else events()


@pytest.fixture
def streams(services: StubServices) -> Streams:
    services.streams = Streams()
    return services.streams


async def test_a_stream_is_these_bytes(client: httpx.AsyncClient, streams: Streams) -> None:
    answer = await client.get("/runs/r/events")
    assert answer.content == (
        b": connected\nretry: 1000\n\n"
        b"id: 1\nevent: run_started\n"
        b'data: {"seq":1,"created_at":"2026-01-31T08:00:00.000000Z","type":"run_started"}\n\n'
        b'id: 2\nevent: text_delta\ndata: {"seq":2,"created_at":"2026-01-31T08:00:00.000000Z","type":"text_delta",'
        b'"data":{"delta":"a\\u2028b"}}\n\n'
    )
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert streams.closed.is_set()


async def test_the_list_has_the_events_of_the_stream_byte_for_byte(client: httpx.AsyncClient, streams: Streams) -> None:
    answer = await client.get("/runs/r/events/list?after=4&limit=2")
    assert answer.content == b'{"items":[' + FIRST.line() + b"," + SECOND.line() + b'],"next_cursor":2}'
    assert streams.asked == [("r", 4, 2)]


async def test_the_first_bytes_come_before_any_event(app: FastAPI, streams: Streams) -> None:
    streams.hold.clear()
    caller = Caller(app, "GET", "/runs/r/events")
    await caller.has(b": connected\n")
    await caller.has(b"id: 1\n")
    assert b"id: 2" not in caller.sent
    streams.hold.set()
    await caller.task
    assert b"id: 2\n" in caller.sent


async def test_a_stream_is_closed_when_its_reader_goes_away(app: FastAPI, streams: Streams) -> None:
    streams.hold.clear()
    caller = Caller(app, "GET", "/runs/r/events")
    await caller.has(b"id: 1\n")
    caller.go_away()
    await caller.task
    assert streams.closed.is_set()


async def test_a_silent_stream_is_kept_open_by_comments(streams: Streams) -> None:
    streams.hold.clear()
    caller = Caller(event_stream(await streams.open_thread("t", None), ping_s=0.01), "GET", "/")
    await caller.has(b"\n\n: ping\n\n")
    caller.go_away()
    await caller.task


@pytest.mark.parametrize(
    ("query", "headers", "after", "reconnect"),
    [
        ("", {}, 0, False),
        ("?after=0", {}, 0, False),
        ("?after=3", {}, 3, True),
        ("?after=3", {"Last-Event-ID": "5"}, 5, True),
        ("", {"Last-Event-ID": "5"}, 5, True),
        ("", {"Last-Event-ID": ""}, 0, False),
        ("", {"Last-Event-ID": "0"}, 0, False),
    ],
)
async def test_a_reader_comes_back_to_where_it_was(
    client: httpx.AsyncClient,
    streams: Streams,
    query: str,
    headers: dict[str, str],
    after: int,
    reconnect: bool,
) -> None:
    await client.get(f"/runs/r/events{query}", headers=headers)
    assert streams.asked == [("r", after, {"types": None, "deltas": True, "reconnect": reconnect})]


async def test_a_reader_says_what_it_wants(client: httpx.AsyncClient, streams: Streams) -> None:
    await client.get("/runs/r/events?types=run_completed,tool_started&deltas=false&subagents=false")
    wanted = streams.asked[0][2]
    assert (wanted["types"], wanted["deltas"]) == (frozenset({"run_completed", "tool_started"}), False)


@pytest.mark.parametrize("path", ["/runs/r/events", "/threads/t/events"])
async def test_a_type_that_there_is_not_is_refused_with_those_that_there_are(
    client: httpx.AsyncClient, streams: Streams, path: str
) -> None:
    answer = await client.get(f"{path}?types=run_completed,run_ended")
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["loc"]) == (422, ["query", "types"])
    assert "'run_ended'" in error["msg"]
    assert "run_completed, " in error["msg"]
    assert streams.asked == []


async def test_a_stream_with_child_runs_has_opaque_ids(client: httpx.AsyncClient, services: StubServices) -> None:
    families = services.family_streams = FamilyStreams()
    path = "/runs/r/events?subagents=true"
    answer = await client.get(f"{path}&types=text_delta,subagent_event&deltas=false", headers={"Last-Event-ID": "f1.x"})
    assert b"id: f1.y\nevent: subagent_event\n" in answer.content
    assert families.asked == [("r", "f1.x", {"types": frozenset({"text_delta", "subagent_event"}), "deltas": False})]
    assert (await client.get(path)).status_code == 200
    assert families.asked[1][1] is None
    families.nothing_left = True
    assert (await client.get(path, headers={"Last-Event-ID": "f1.y"})).status_code == 204


async def test_an_id_of_the_one_stream_is_none_of_the_other(client: httpx.AsyncClient, services: StubServices) -> None:
    services.family_streams = FamilyStreams()
    mixed = await client.get("/runs/r/events", headers={"Last-Event-ID": "f1.x"})
    assert (mixed.status_code, mixed.json()["errors"][0]["loc"]) == (422, ["header", "Last-Event-ID"])
    mixed = await client.get("/runs/r/events?subagents=true&after=1")
    assert (mixed.status_code, mixed.json()["errors"][0]["loc"]) == (422, ["query", "after"])


async def test_a_reader_that_has_everything_is_told_to_stop(client: httpx.AsyncClient, streams: Streams) -> None:
    streams.nothing_left = True
    answer = await client.get("/runs/r/events", headers={"Last-Event-ID": "2"})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(RunNotFound("r"), 404), (Invalid("ahead", ("query", "after")), 422), (EventsTrimmed(9), 410)],
)
async def test_a_refusal_comes_before_the_stream(
    client: httpx.AsyncClient, streams: Streams, refusal: Exception, status: int
) -> None:
    streams.refusal = refusal
    answer = await client.get("/runs/r/events")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_the_head_of_a_stream_opens_none_for_long(client: httpx.AsyncClient, streams: Streams) -> None:
    streams.hold.clear()
    answer = await client.head("/runs/r/events")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_threads_stream_has_opaque_ids(client: httpx.AsyncClient, streams: Streams) -> None:
    answer = await client.get("/threads/t/events", headers={"Last-Event-ID": "abc"})
    assert b"id: cursor-1\nevent: run_started\n" in answer.content
    assert streams.asked == [("t", "abc", {"types": None, "deltas": True})]
