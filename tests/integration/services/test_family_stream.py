"""A reader of a run and of the runs below it gets every event of every log once, and in the log's order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from app.db.database import Database
from app.engine.events import Event, EventType, StoredEvent
from app.engine.ownership import Committed
from app.engine.ports import RunStore
from app.engine.records import NewRun
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.event_bus.memory import MemoryBus
from app.services.errors import EventsTrimmed, Invalid
from app.services.event_stream import EventStreams
from app.services.family_stream import FamilyStreams
from tests.contract.stores import STOPPED, Owner, claim_only, create_started, events_of, postgres_subject
from tests.contract.waiting import a_child, claim_these, delegate, end_child, started

Told = tuple[str, StoredEvent]


@pytest.fixture
async def store(database: Database) -> RunStore:
    return (await postgres_subject(database)).store


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def streams(database: Database, bus: MemoryBus) -> FamilyStreams:
    return FamilyStreams(database, bus)


async def _delegates(owner: Owner, *children: NewRun) -> Committed:
    begun = [
        Event(EventType.SUBAGENT_STARTED, owner.step, {"subagent_name": "helper", "run_id": child.run_id})
        for child in children
    ]
    waiting = Event(EventType.RUN_WAITING, owner.step, {"waiting_for": []}, RunStatus.WAITING)
    return await delegate(owner, *children, opening=(*begun, waiting))


async def _a_family(store: RunStore) -> list[NewRun]:
    """A run that has delegated to two others, one of which delegated once more; all of them are over."""
    first = await create_started(store)
    left, right = a_child(first.new), a_child(first.new)
    await _delegates(first, left, right)
    on_the_left, on_the_right = await claim_these(store, left, right)
    await on_the_left.start()
    await on_the_right.start()
    below = a_child(left)
    await _delegates(on_the_left, below)
    last = await started(store, below)
    await last.say("a", "b")
    await end_child(last)
    await end_child(await claim_only(store, left))
    await end_child(on_the_right, RunStatus.FAILED)
    await (await claim_only(store, first.new)).finish()
    return [first.new, left, right, below]


async def _all(stream: AsyncGenerator[Told] | None) -> list[Told]:
    assert stream is not None
    async with asyncio.timeout(30):
        return [told async for told in stream]


async def _open(
    streams: FamilyStreams,
    run_id: str,
    cursor: str | None = None,
    types: frozenset[str] | None = None,
    deltas: bool = True,
) -> AsyncGenerator[Told] | None:
    return await streams.open(run_id, cursor, types=types, deltas=deltas)


async def _next(stream: AsyncGenerator[Told] | None, bus: MemoryBus, run_id: str) -> Told:
    """What comes next, as somebody keeps telling the reader to look."""
    assert stream is not None
    waiting = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(30):
        while not waiting.done():
            bus.poke(run_id)
            await asyncio.sleep(0)
    return waiting.result()


async def _close(stream: AsyncGenerator[Told] | None) -> None:
    if stream is not None:
        await stream.aclose()


def _inner(event: StoredEvent) -> dict[str, Any]:
    """An event as its own log has it."""
    told = orjson.loads(event.line())
    return told["data"]["event"] if event.type == "subagent_event" else told


def _by_run(told: list[Told]) -> dict[str, list[int]]:
    seqs: dict[str, list[int]] = {}
    for _, event in told:
        inner = _inner(event)
        seqs.setdefault(inner["run_id"], []).append(inner["seq"])
    return seqs


async def _logs(store: RunStore, *runs: NewRun) -> dict[str, list[int]]:
    return {run.run_id: [event.seq for event in await events_of(store, run.run_id)] for run in runs}


async def test_a_family_that_is_over_is_told_whole_and_by_its_times(store: RunStore, streams: FamilyStreams) -> None:
    family = await _a_family(store)
    told = await _all(await _open(streams, family[0].run_id))
    assert _by_run(told) == await _logs(store, *family)
    times = [event.created_at for _, event in told]
    assert times == sorted(times)
    assert (told[0][1].type, told[-1][1].type) == ("run_started", "run_completed")


async def test_a_run_s_own_events_are_as_they_are_and_the_others_inside_of_one(
    store: RunStore, streams: FamilyStreams
) -> None:
    root, *below = await _a_family(store)
    told = [event for _, event in await _all(await _open(streams, root.run_id))]
    own = [event for event in told if event.type != "subagent_event"]
    assert [event.line() for event in own] == [event.line() for event in await events_of(store, root.run_id)]
    for run in below:
        for event in await events_of(store, run.run_id):
            (wrapped,) = [each for each in told if b'{"event":' + event.line() + b"}" in each.line()]
            outside, inside = orjson.loads(wrapped.line()), orjson.loads(event.line())
            for name in ("seq", "created_at", "run_id", "thread_id", "agent_name", "state", "step", "schema_version"):
                assert outside[name] == inside[name]
            assert (outside["type"], outside["message"]) == ("subagent_event", None)
            assert list(outside) == list(inside)


async def test_any_cursor_is_a_place_to_come_back_to_on_any_replica(
    store: RunStore, streams: FamilyStreams, database: Database
) -> None:
    family = await _a_family(store)
    told = await _all(await _open(streams, family[0].run_id))
    another = FamilyStreams(database, MemoryBus())
    for place, (cursor, _) in enumerate(told[:-1]):
        rest = await _all(await _open(another, family[0].run_id, cursor))
        assert _by_run(rest) == _by_run(told[place + 1 :]), place
    assert await _open(another, family[0].run_id, told[-1][0]) is None


async def test_a_cursor_does_not_grow_with_what_is_over(
    store: RunStore, streams: FamilyStreams, bus: MemoryBus
) -> None:
    first = await create_started(store)
    stream = await _open(streams, first.run_id)
    lengths: list[int] = []
    for step in (1, 2, 3):
        first.step = step
        child = a_child(first.new)
        await _delegates(first, child)
        await end_child(await started(store, child))
        first = await claim_only(store, first.new)
        await first.say("more")
        cursor, event = await _next(stream, bus, first.run_id)
        while event.type != "text_delta":
            cursor, event = await _next(stream, bus, first.run_id)
        lengths.append(len(cursor))
    await _close(stream)
    assert len(set(lengths)) == 1


async def test_a_reader_follows_what_goes_on_until_the_last_run_is_over(
    store: RunStore, streams: FamilyStreams, bus: MemoryBus
) -> None:
    first = await create_started(store)
    reading = asyncio.create_task(_all(await _open(streams, first.run_id)))
    child = a_child(first.new)
    bus.publish(first.run_id, (await _delegates(first, child)).events)
    owner = await started(store, child)
    said = await owner.say("one", "two")
    assert isinstance(said, Committed)
    bus.publish(child.run_id, said.events)
    bus.publish(child.run_id, (await end_child(owner)).events)
    bus.publish(first.run_id, (await (await claim_only(store, first.new)).finish()).events)
    told = await reading
    assert _by_run(told) == await _logs(store, first.new, child)
    assert len({cursor for cursor, _ in told}) == len(told)


async def test_what_is_handed_over_in_memory_comes_without_a_look_at_the_rows(
    database: Database, store: RunStore, streams: FamilyStreams, bus: MemoryBus
) -> None:
    first = await create_started(store)
    child = a_child(first.new)
    await _delegates(first, child)
    owner = await started(store, child)
    known = len(await events_of(store, first.run_id)) + len(await events_of(store, child.run_id))
    stream = await _open(streams, first.run_id)
    for _ in range(known):
        await _next(stream, bus, first.run_id)
    assert stream is not None
    waiting = asyncio.ensure_future(anext(stream))
    said = await owner.say("one")
    assert isinstance(said, Committed)
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM run_events WHERE run_id = $1::uuid", child.run_id)
    async with asyncio.timeout(30):
        while not bus.watched(child.run_id):
            await asyncio.sleep(0)
        bus.publish(child.run_id, said.events)
        _, event = await waiting
    await _close(stream)
    assert _inner(event)["data"] == {"delta": "one"}


async def test_child_runs_that_were_stopped_with_the_run_are_told_to_their_ends(
    store: RunStore, streams: FamilyStreams
) -> None:
    first = await create_started(store)
    child = a_child(first.new)
    await _delegates(first, child)
    await started(store, child)
    await store.stop(first.run_id, RunStatus.CANCELLED, STOPPED)
    told = await _all(await _open(streams, first.run_id))
    assert _by_run(told) == await _logs(store, first.new, child)
    assert sum(_inner(event)["type"] == "run_cancelled" for _, event in told) == 2


async def test_a_run_that_is_resumed_goes_on_with_its_child_behind_the_old_cursor(
    store: RunStore, streams: FamilyStreams
) -> None:
    first = await create_started(store)
    child = a_child(first.new)
    await _delegates(first, child)
    await started(store, child)
    await store.stop(first.run_id, RunStatus.INTERRUPTED, STOPPED)
    told = await _all(await _open(streams, first.run_id))
    assert await _open(streams, first.run_id, told[-1][0]) is None
    await store.resume(first.run_id, None)
    await store.stop(first.run_id, RunStatus.CANCELLED, STOPPED)
    rest = await _all(await _open(streams, first.run_id, told[-1][0]))
    assert _by_run([*told, *rest]) == await _logs(store, first.new, child)


async def test_filters_reach_into_the_events_of_child_runs(store: RunStore, streams: FamilyStreams) -> None:
    family = await _a_family(store)
    root = family[0].run_id

    async def types_of(types: set[str] | None, deltas: bool = True) -> list[tuple[bool, str]]:
        told = await _all(await _open(streams, root, types=None if types is None else frozenset(types), deltas=deltas))
        return [(_inner(event)["run_id"] == root, _inner(event)["type"]) for _, event in told]

    everything = await types_of(None)
    assert await types_of(None, deltas=False) == [each for each in everything if each[1] != "text_delta"]
    assert sorted(await types_of({"text_delta"})) == [(False, "text_delta")] * 2
    ends = {"run_completed", "run_failed"}
    assert await types_of(ends) == [each for each in everything if each[1] in ends]
    assert await types_of({"run_completed", "subagent_event"}, deltas=False) == [
        (own, name) for own, name in everything if name != "text_delta" and (not own or name == "run_completed")
    ]


async def test_a_child_run_has_a_family_of_its_own(store: RunStore, streams: FamilyStreams) -> None:
    _, left, _, below = await _a_family(store)
    told = await _all(await _open(streams, left.run_id.upper()))
    assert _by_run(told) == await _logs(store, left, below)
    assert told[0][1].type == "run_started"


async def test_a_run_that_is_not_there_has_no_stream(streams: FamilyStreams) -> None:
    for run_id in ("x", "019aa3f0-0000-7000-8000-000000000009"):
        with pytest.raises(RunNotFound):
            await _open(streams, run_id)


async def test_a_cursor_of_another_stream_is_refused(
    store: RunStore, streams: FamilyStreams, database: Database
) -> None:
    family = await _a_family(store)
    root = family[0].run_id
    told = await _all(await _open(streams, root))
    threads = await EventStreams(database, MemoryBus()).open_thread(family[0].thread_id, None, types=None, deltas=True)
    async with asyncio.timeout(30):
        of_thread, _ = await anext(threads)
    await threads.aclose()
    whole = told[-1][0]
    for cursor in (
        "3",
        "0",
        "f1.",
        "f1.!",
        "f1.AAAA",
        whole[3:],
        whole[:-1],
        whole + "AAAA",
        of_thread,
        "f1." + "A" * 31,
    ):
        with pytest.raises(Invalid) as refused:
            await _open(streams, root, cursor)
        assert refused.value.loc == ("header", "Last-Event-ID")
    with pytest.raises(Invalid):
        await _open(streams, family[1].run_id, whole)


async def test_a_cursor_ahead_of_a_log_or_behind_what_is_kept_is_refused(
    store: RunStore, streams: FamilyStreams, database: Database
) -> None:
    family = await _a_family(store)
    root = family[0].run_id
    told = await _all(await _open(streams, root))
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET first_seq = 3 WHERE run_id = $1::uuid", root)
    with pytest.raises(EventsTrimmed):
        await _open(streams, root)
    with pytest.raises(EventsTrimmed):
        await _open(streams, root, told[0][0])
    async with database.transaction() as connection:
        await connection.execute("UPDATE runs SET first_seq = 1, last_seq = 2 WHERE run_id = $1::uuid", root)
    with pytest.raises(Invalid, match="ahead"):
        await _open(streams, root, told[-1][0])


async def test_a_run_deleted_while_it_is_read_ends_its_stream(
    database: Database, store: RunStore, streams: FamilyStreams, bus: MemoryBus
) -> None:
    first = await create_started(store)
    stream = await _open(streams, first.run_id)
    for _ in await events_of(store, first.run_id):
        await _next(stream, bus, first.run_id)
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM runs WHERE run_id = $1::uuid", first.run_id)
    with pytest.raises(StopAsyncIteration):
        await _next(stream, bus, first.run_id)
