"""A reader of a whole thread gets every event of every run, whatever the runs were doing when it looked."""

from __future__ import annotations

import asyncio

from app.db.database import Database
from app.event_bus.memory import MemoryBus
from app.services.event_stream import EventStreams
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
