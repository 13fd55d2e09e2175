"""What is not kept for ever goes from runs that are over for long enough, and readers of the rest are not misled."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator

import pytest

from app.db import heartbeats
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.retention import Removed
from app.db.run_store import PostgresRunStore
from app.engine.events import Event, EventType, StoredEvent
from app.engine.messages import Message, Role
from app.engine.status import RunStatus as S
from app.engine.store_errors import RunNotFound
from app.event_bus.memory import MemoryBus
from app.services.errors import EventsTrimmed
from app.services.event_stream import ROWS_AT_ONCE as PAGE
from app.services.event_stream import EventStreams
from app.services.family_stream import FamilyStreams
from app.services.threads import ThreadService
from app.worker.sweeper import Retention
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    STOPPED,
    a_run,
    create_started,
    events_of,
    new_id,
    run_in,
    types_of,
)
from tests.contract.waiting import a_child, claim_these, delegate, end_child, parent_of
from tests.integration.old_runs import (
    ALL,
    EVENTS,
    RUNS,
    a_long_run,
    a_sweeper,
    check_logs,
    count,
    forget_marks,
    rows_of,
    set_back,
)


@pytest.fixture
def streams(database: Database) -> EventStreams:
    return EventStreams(database, MemoryBus())


async def given(stream: AsyncGenerator[StoredEvent] | None) -> list[StoredEvent]:
    """All that a stream of one run gives until its end."""
    assert stream is not None
    async with asyncio.timeout(20):
        return [event async for event in stream]


async def test_without_retention_a_sweep_touches_no_run(store: PostgresRunStore, database: Database) -> None:
    owner = await a_long_run(store)
    await set_back(database, days=4000)
    before = await rows_of(database, owner.run_id)
    assert await a_sweeper(database, Retention()).sweep() == {}
    assert await rows_of(database, owner.run_id) == before
    assert [row["name"] for row in await database.pool.fetch("SELECT name FROM chores")] == ["housekeeping"]


async def test_deltas_go_and_everything_else_stays(
    store: PostgresRunStore, database: Database, streams: EventStreams
) -> None:
    old, young = await a_long_run(store), await a_long_run(store)
    await set_back(database, old.run_id)
    before = await events_of(store, old.run_id)
    (gap,) = {event.seq for event in before if event.as_dict()["data"].get("delta") == "look."}
    removed = await a_sweeper(database, Retention(deltas_days=1)).sweep()
    assert removed == {Removed.DELTAS: 4}
    kept = [event for event in before if event.type != "text_delta"]
    assert await events_of(store, old.run_id) == kept
    assert "text_delta" in await types_of(store, young.run_id)
    trimmed = await database.pool.fetch("SELECT run_id FROM runs WHERE deltas_trimmed")
    assert [str(row["run_id"]) for row in trimmed] == [old.run_id]
    # Readers pass over the gaps, from the start and from the midst of what is gone.
    for after, reconnect in ((0, False), (gap, True), (gap - 1, True)):
        stream = await streams.open_run(old.run_id, after, types=None, deltas=True, reconnect=reconnect)
        assert await given(stream) == [event for event in kept if event.seq > after]
        page = await streams.list_run(old.run_id, after, 100)
        assert (page.items, page.next_cursor) == ([event for event in kept if event.seq > after], None)
    await check_logs(database)


async def test_a_delta_that_is_the_last_event_of_its_run_stays(store: PostgresRunStore, database: Database) -> None:
    """Readers know by the last event that they have seen all; without that bound they would wait for it."""
    owner = await a_long_run(store)
    await set_back(database)
    await database.pool.execute(
        """UPDATE run_events e SET type = 'text_delta' FROM runs r
           WHERE r.run_id = e.run_id AND e.seq = r.last_seq AND r.run_id = $1::uuid""",
        owner.run_id,
    )
    await a_sweeper(database, Retention(deltas_days=1)).sweep()
    last = (await events_of(store, owner.run_id))[-1]
    assert (last.type, last.seq) == ("text_delta", (await store.get(owner.run_id)).last_event_seq)


async def test_of_the_events_the_last_one_stays_and_a_cursor_behind_it_is_told(
    store: PostgresRunStore, database: Database, streams: EventStreams
) -> None:
    owner = await a_long_run(store)
    await set_back(database)
    *gone, last = await events_of(store, owner.run_id)
    assert await a_sweeper(database, EVENTS).sweep() == {Removed.EVENTS: len(gone)}
    assert await events_of(store, owner.run_id) == [last]
    for after in (0, 1, last.seq - 2):
        with pytest.raises(EventsTrimmed) as refused:
            await streams.open_run(owner.run_id, after, types=None, deltas=True, reconnect=after > 0)
        assert refused.value.first_seq == last.seq
        with pytest.raises(EventsTrimmed) as refused:
            await streams.list_run(owner.run_id, after, 100)
        assert refused.value.first_seq == last.seq
    stream = await streams.open_run(owner.run_id, last.seq - 1, types=None, deltas=True, reconnect=True)
    assert await given(stream) == [last]
    assert (await streams.list_run(owner.run_id, last.seq - 1, 10)).items == [last]
    await check_logs(database)


async def test_a_threads_stream_gives_what_is_left_of_each_run_and_goes_on(
    store: PostgresRunStore, database: Database, streams: EventStreams
) -> None:
    first = await a_long_run(store, new=a_run("thread"))
    await set_back(database)
    second = await a_long_run(store, new=a_run("thread"))
    last = (await events_of(store, first.run_id))[-1]
    await a_sweeper(database, EVENTS).sweep()
    stream = await streams.open_thread("thread", None, types=None, deltas=True)
    expected = [last, *await events_of(store, second.run_id)]
    async with asyncio.timeout(20):
        seen = [await anext(stream) for _ in expected]
    await stream.aclose()
    assert [event for _, event in seen] == expected
    # A cursor from before the events went is a place to come back to as well.
    again = await streams.open_thread("thread", seen[0][0], types=None, deltas=True)
    async with asyncio.timeout(20):
        assert (await anext(again))[1] == expected[1]
    await again.aclose()


async def test_the_cursor_of_a_threads_stream_forgets_runs_that_are_gone(
    store: PostgresRunStore, database: Database, streams: EventStreams
) -> None:
    """Without that a reader of a thread whose runs fail and are removed carries ever more of them in its cursor."""
    failed = await a_long_run(store, S.FAILED, a_run("thread"))
    await ThreadService(database).append_message("thread", Message(Role.USER, "Are you there?"))
    stream = await streams.open_thread("thread", None, types=None, deltas=True)
    async with asyncio.timeout(20):
        *_, cursor = [(await anext(stream))[0] for _ in range((await store.get(failed.run_id)).last_event_seq)]
    await stream.aclose()
    assert failed.run_id in _read(cursor)
    await set_back(database, failed.run_id)
    await a_sweeper(database, RUNS).sweep()
    last = await a_long_run(store, new=a_run("thread"))
    again = await streams.open_thread("thread", cursor, types=None, deltas=True)
    async with asyncio.timeout(20):
        *_, cursor = [(await anext(again))[0] for _ in range((await store.get(last.run_id)).last_event_seq)]
        assert failed.run_id in _read(cursor)  # it is forgotten at the end of a look
        waiting = asyncio.ensure_future(anext(again))
        third = await a_long_run(store, new=a_run("thread"))
        cursor, event = await waiting
    await again.aclose()
    assert event.as_dict()["run_id"] == third.run_id
    assert failed.run_id not in _read(cursor)


def _read(cursor: str) -> str:
    return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()


async def test_a_familys_stream_gives_what_is_left_of_a_child_run(store: PostgresRunStore, database: Database) -> None:
    """Where a cursor behind what is left of a child run is refused, a reader who has seen the first half of it cannot
    come back to the rest of the family."""
    first = await create_started(store)
    child = a_child(first.new)
    begun = Event(EventType.SUBAGENT_STARTED, 1, {"subagent_name": "helper", "run_id": child.run_id})
    waiting = Event(EventType.RUN_WAITING, 1, {"waiting_for": []}, S.WAITING)
    await delegate(first, child, opening=(begun, waiting))
    (second,) = await claim_these(store, child)
    await second.start()
    await end_child(second)
    (again,) = await claim_these(store, first.new)
    await again.finish()
    families = FamilyStreams(database, MemoryBus())
    whole = await families.open(first.run_id, None, types=None, deltas=True)
    assert whole is not None
    async with asyncio.timeout(20):
        told = [each async for each in whole]
    of_child = [number for number, (_, event) in enumerate(told) if event.type == "subagent_event"]
    await set_back(database, child.run_id)
    await a_sweeper(database, EVENTS).sweep()
    midway = await families.open(first.run_id, told[of_child[0]][0], types=None, deltas=True)
    assert midway is not None
    async with asyncio.timeout(20):
        rest = [event async for _, event in midway]
    seen = [number for number in range(of_child[0] + 1, len(told)) if number not in of_child[1:-1]]
    assert rest == [told[number][1] for number in seen]
    await set_back(database, first.run_id)
    await forget_marks(database)
    await a_sweeper(database, EVENTS).sweep()
    with pytest.raises(EventsTrimmed):
        await families.open(first.run_id, told[of_child[0]][0], types=None, deltas=True)


async def test_a_reader_whose_log_is_trimmed_meanwhile_is_sent_away_and_told_when_it_comes_back(
    store: PostgresRunStore, database: Database, streams: EventStreams
) -> None:
    """Where the stream does not look why there is a gap, it passes over events that the reader has never seen."""
    owner = await create_started(store)
    await owner.say(*("x" for _ in range(2 * PAGE)))
    await owner.finish()
    await set_back(database)
    stream = await streams.open_run(owner.run_id, 0, types=None, deltas=True, reconnect=False)
    assert stream is not None
    first = await anext(stream)
    last = (await events_of(store, owner.run_id))[-1]
    assert await a_sweeper(database, EVENTS).sweep()
    seen = [first, *await given(stream)]
    assert [event.seq for event in seen] == list(range(1, PAGE + 1))
    with pytest.raises(EventsTrimmed) as refused:
        await streams.open_run(owner.run_id, seen[-1].seq, types=None, deltas=True, reconnect=True)
    assert refused.value.first_seq == last.seq


async def test_of_the_checkpoints_the_last_one_stays_and_the_run_goes_on_from_it(
    store: PostgresRunStore, database: Database
) -> None:
    owner = await a_long_run(store, S.FAILED)
    await set_back(database)
    before = await store.load(owner.run_id)
    last_seq = before.run.last_event_seq
    removed = await a_sweeper(database, Retention(checkpoints_days=1, events_days=1, deltas_days=1)).sweep()
    assert removed[Removed.CHECKPOINTS] == 2
    assert (await rows_of(database, owner.run_id))[1:] == (1, 1)
    await store.resume(owner.run_id, None)
    (resumed,) = await claim_these(store, owner.new)
    loaded = await store.load(owner.run_id)
    assert (loaded.checkpoint, loaded.checkpoint_seq) == (before.checkpoint, before.checkpoint_seq)
    assert loaded.messages == before.messages
    resumed.step = 2
    await resumed.say("again")
    await resumed.finish()
    assert [event.seq for event in await events_of(store, owner.run_id)] == list(range(last_seq, last_seq + 4))
    await check_logs(database)
    # It has ended anew, and what it has left since goes when its time has come again.
    await set_back(database, days=1.5)
    await forget_marks(database)
    await a_sweeper(database, Retention(deltas_days=1)).sweep()
    assert "text_delta" not in await types_of(store, owner.run_id)


async def test_a_run_goes_with_all_runs_below_it_and_with_its_thread(
    store: PostgresRunStore, database: Database
) -> None:
    owner, _ = await parent_of(store, 2)
    await store.stop(owner.run_id, S.CANCELLED, STOPPED)
    await set_back(database, owner.run_id)  # the children may have ended any time before
    await database.pool.execute("UPDATE threads SET updated_at = updated_at - interval '2 days'")
    young = await a_long_run(store)
    assert await a_sweeper(database, RUNS).sweep() == {Removed.RUNS: 3, Removed.THREADS: 3}
    with pytest.raises(RunNotFound):
        await store.get(owner.run_id)
    assert (await store.get(young.run_id)).status is S.COMPLETED
    for table in ("runs", "threads"):
        assert await count(database, table) == 1, table
    for table in ("messages", "run_events", "checkpoints", "tool_executions"):
        of_young = f"{table} WHERE run_id = '{young.run_id}'"
        assert await count(database, table) == await count(database, of_young) > 0, table
    await check_logs(database)


@pytest.mark.parametrize("status", [S.QUEUED, S.RUNNING, S.PAUSED, S.WAITING])
async def test_what_is_not_over_stays_however_old_it_is(store: PostgresRunStore, database: Database, status: S) -> None:
    new = await run_in(store, status)
    before = await rows_of(database, new.run_id)
    await database.pool.execute(
        "UPDATE runs SET created_at = now() - interval '9 days', started_at = now() - interval '9 days'"
    )
    assert await a_sweeper(database, ALL).sweep() == {}
    assert await rows_of(database, new.run_id) == before


async def test_a_thread_stays_while_it_has_runs_or_somebody_has_written_to_it_since(
    store: PostgresRunStore, database: Database
) -> None:
    """Without the look at `updated_at` the message is lost."""
    threads = ThreadService(database)
    for name in ("written", "left", "shared"):
        await a_long_run(store, new=a_run(name))
    await set_back(database)
    await a_long_run(store, new=a_run("shared"))
    await threads.append_message("written", Message(Role.USER, "And another thing."))
    assert await a_sweeper(database, RUNS).sweep() == {Removed.RUNS: 3, Removed.THREADS: 1}
    kept = await database.pool.fetch("SELECT thread_id FROM threads ORDER BY thread_id")
    assert [row["thread_id"] for row in kept] == ["shared", "written"]
    assert len((await threads.list_messages("written", 0, 100)).items) == 5
    assert len((await threads.list_messages("shared", 0, 100)).items) == 8


async def test_a_run_that_ended_a_moment_ago_stays_however_little_is_kept(
    store: PostgresRunStore, database: Database
) -> None:
    """Without the margin a run whose end is committed after the sweep has passed its time is never found."""
    await a_long_run(store)
    assert await a_sweeper(database, Retention(1e-9, 1e-9, 1e-9, 1e-9)).sweep() == {}


async def test_housekeeping_removes_keys_that_no_longer_count_and_rows_of_replicas_long_dead(
    store: PostgresRunStore, database: Database
) -> None:
    orphan = await create_started(store)
    async with database.connection() as connection:
        for replica in (OWNER, OTHER_OWNER, new_id()):
            await heartbeats.beat(connection, replica, Process("host", 1), draining=False)
        # The first one is dead and owns a run that nobody has recovered yet; the second one is dead and owns nothing.
        await connection.execute(
            "UPDATE replicas SET heartbeat_at = now() - interval '2 hours' WHERE incarnation = ANY ($1::uuid[])",
            [OWNER, OTHER_OWNER],
        )
        await connection.execute(
            """INSERT INTO idempotency_keys (key, request_hash, resource, created_at)
               SELECT n::text, '', '{}', now() - make_interval(hours => n) FROM generate_series(20, 30) AS n"""
        )
    assert await a_sweeper(database, Retention()).sweep() == {Removed.REPLICAS: 1, Removed.IDEMPOTENCY_KEYS: 7}
    assert await count(database, "idempotency_keys") == 4
    left = await database.pool.fetch("SELECT incarnation FROM replicas")
    assert OTHER_OWNER not in [str(row["incarnation"]) for row in left]
    assert (await store.get(orphan.run_id)).status is S.RUNNING
