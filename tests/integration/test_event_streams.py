"""A reader of a whole thread gets every event of every run, whatever the runs were doing when it looked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from app.db import reading
from app.db.database import Database
from app.engine.events import StoredEvent
from app.event_bus.memory import SUBSCRIPTION_CHARS, MemoryBus
from app.services.event_stream import CHARS_AT_ONCE, ROWS_AT_ONCE, EventStreams, is_full
from tests.contract.stores import a_run, claim_only, create_started, postgres_subject


async def test_runs_that_waited_in_line_when_the_reader_came_are_not_lost(database: Database) -> None:
    store = (await postgres_subject(database)).store
    streams = EventStreams(database, MemoryBus())
    first = await create_started(store, a_run("thread"))
    second = a_run("thread")
    await store.create(second, owner=None)
    stream = await streams.open_thread("thread", None, types=None, deltas=True)
    seen: list[tuple[str, int]] = []
    cursors: list[str] = []

    async def read(count: int) -> None:
        while len(seen) < count:
            cursor, event = await anext(stream)
            cursors.append(cursor)
            seen.append((event.as_dict()["run_id"], event.seq))

    async with asyncio.timeout(30):
        await read(3)
        await first.finish()
        owner = await claim_only(store, second)
        await owner.start()
        await owner.finish()
        await read(10)
    await stream.aclose()
    expected = [(first.run_id, seq) for seq in range(1, 6)] + [(second.run_id, seq) for seq in range(1, 6)]
    assert seen == expected
    # Any of the cursors is a place to come back to.
    again = await streams.open_thread("thread", cursors[3], types=None, deltas=True)
    async with asyncio.timeout(30):
        rest = [(await anext(again))[1].seq for _ in range(6)]
    await again.aclose()
    assert rest == [seq for _, seq in expected[4:]]


async def test_a_page_of_a_log_is_bounded_by_what_its_events_weigh_and_misses_none(database: Database) -> None:
    """Seen to fail without `most_chars` in the reading of rows."""
    store = (await postgres_subject(database)).store
    owner = await create_started(store)
    known = (await store.get(owner.run_id)).last_event_seq
    for _ in range(8):
        await owner.say("x" * (CHARS_AT_ONCE // 2))
    async with database.connection() as connection:
        page = await reading.read_events(connection, owner.run_id, known, ROWS_AT_ONCE, most_chars=CHARS_AT_ONCE)
    assert [event.seq for event in page] == [known + 1, known + 2]
    assert is_full(page)
    await owner.finish()
    stream = await EventStreams(database, MemoryBus()).open_run(
        owner.run_id, 0, types=None, deltas=True, reconnect=False
    )
    assert stream is not None
    async with asyncio.timeout(30):
        seen = [event.seq async for event in stream]
    assert seen == list(range(1, seen[-1] + 1))
    assert len(seen) > known + 8


def test_a_reader_who_takes_nothing_holds_no_more_than_a_page_and_is_sent_to_the_rows() -> None:
    """Seen to fail without the bound in `Subscription.put`."""
    bus = MemoryBus()
    heavy = StoredEvent(1, "text_delta", datetime(2026, 1, 1, tzinfo=UTC), "x" * (SUBSCRIPTION_CHARS // 4))
    with bus.subscribe("run") as reader:
        for _ in range(10):
            bus.publish("run", [heavy])
        assert sum(len(event.body) for _, event in reader.take()) <= SUBSCRIPTION_CHARS
        assert reader.stale()
