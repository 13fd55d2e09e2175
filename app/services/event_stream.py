"""Events for readers: of one run or of a whole thread, from any place in the log, for as long as there may be more.

Register for wake-ups, then read the rows after the cursor, and again. Events that this replica commits are handed over
in memory while they follow on; whenever they do not, the rows are read, so that every event comes once and in order.
No database session is held while a reader reads.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import orjson

from app.db import reading
from app.db.database import Database
from app.engine.events import DELTA_TYPES, TERMINAL_TYPES, StoredEvent
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.event_bus.memory import MemoryBus, Subscription
from app.services.errors import EventsTrimmed, Invalid, NotFound

# What a reader holds of the log at once: a page ends with the event that makes it this long, however few they are.
ROWS_AT_ONCE = 100
CHARS_AT_ONCE = 256 * 1024
# A reader that nobody wakes looks at the rows this often; the replica's own query wakes it within a second anyway.
LOOK_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class EventPage:
    items: list[StoredEvent]
    next_cursor: int | None


@dataclass(slots=True)
class _ThreadCursor:
    """A place in a thread's events: runs up to an ordinal are read to their end, but for those that may go on."""

    ordinal: int = 0
    positions: dict[str, int] = field(default_factory=dict[str, int])

    def encode(self) -> str:
        text = orjson.dumps([self.ordinal, self.positions])
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> _ThreadCursor:
        try:
            padded = text + "=" * (-len(text) % 4)
            ordinal, positions = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            known = {str(UUID(run_id)): int(seq) for run_id, seq in cast("dict[str, Any]", positions).items()}
            if not (isinstance(ordinal, int) and 0 <= ordinal < 2**63 and len(known) <= 1000):
                raise ValueError(text)
            return cls(ordinal, known)
        except (ValueError, TypeError, AttributeError, binascii.Error):
            raise Invalid("this is not a cursor of this stream", ("header", "Last-Event-ID")) from None


class EventStreams:
    """Raises (all methods): `StoreUnavailable` when the database cannot be reached."""

    def __init__(self, database: Database, bus: MemoryBus) -> None:
        self._database = database
        self._bus = bus

    async def open_run(
        self, run_id: str, after: int, *, types: frozenset[str] | None, deltas: bool, reconnect: bool
    ) -> AsyncGenerator[StoredEvent] | None:
        """The events of a run after a seq, until the run is terminal and its last event was given.

        Args:
            types: only these types; None for all.
            deltas: whether deltas are given.
            reconnect: the reader was here before.

        Returns:
            None if a reader that comes back has all that will ever be.

        Raises:
            RunNotFound: there is no such run.
            Invalid: the cursor is ahead of the run.
            EventsTrimmed: the cursor is behind what retention kept.
        """
        run = await self._head(run_id)
        refuse_ahead(run, after, ("header", "Last-Event-ID") if reconnect else ("query", "after"))
        if after + 1 < run.first_seq:
            raise EventsTrimmed(run.first_seq)
        if reconnect and run.status.terminal and after == run.last_seq:
            return None
        return self._follow_run(run.run_id, after, filter_of(types, deltas))

    async def open_thread(
        self,
        thread_id: str,
        cursor: str | None,
        *,
        types: frozenset[str] | None,
        deltas: bool,
        tenant_id: str = "",
    ) -> AsyncGenerator[tuple[str, StoredEvent]]:
        """The events of all runs of a thread, each with the cursor that stands behind it; without an end.

        Raises:
            NotFound: there is no such thread.
            Invalid: the cursor is none of this stream's.
        """
        place = _ThreadCursor() if cursor is None else _ThreadCursor.decode(cursor)
        async with self._database.connection() as connection:
            thread_key = await reading.thread_key(connection, tenant_id, thread_id)
        if thread_key is None:
            raise NotFound(f"there is no thread {thread_id!r}")
        return self._follow_thread(thread_key, place, filter_of(types, deltas))

    async def list_run(self, run_id: str, after: int, limit: int) -> EventPage:
        """A page of a run's events; raises as `open_run` does."""
        run = await self._head(run_id)
        refuse_ahead(run, after, ("query", "after"))
        items = await self._rows(run_id, after, limit)
        trimmed = await self._trimmed(run_id, after, items)
        if trimmed is not None:
            raise trimmed
        more = bool(items) and items[-1].seq < run.last_seq
        return EventPage(items, items[-1].seq if more else None)

    def _follow_run(
        self, run_id: str, after: int, wanted: Callable[[StoredEvent], bool]
    ) -> AsyncGenerator[StoredEvent]:
        async def rows(cursor: int) -> list[StoredEvent]:
            page = await self._rows(run_id, cursor, ROWS_AT_ONCE)
            # The reader comes back to what was removed under it, and is told so.
            return page if await self._trimmed(run_id, cursor, page) is None else []

        async def ended(cursor: int) -> bool:
            return await self._ended(run_id, cursor)

        return follow_run(self._bus, run_id, after, rows, ended, wanted)

    async def _ended(self, run_id: str, cursor: int) -> bool:
        """Whether no event follows on: all were given, or those that come next are gone.

        What is asked is the run, since one that was resumed has earlier ends in its log.
        """
        try:
            run = await self._head(run_id)
        except RunNotFound:
            return True
        return (run.status.terminal and run.last_seq <= cursor) or cursor + 1 < run.first_seq

    async def _trimmed(self, run_id: str, after: int, page: list[StoredEvent]) -> EventsTrimmed | None:
        """Why there is a gap before a page of rows: that all before it was removed; None if only deltas were."""
        if not page or page[0].seq == after + 1:
            return None
        try:
            first_seq = (await self._head(run_id)).first_seq
        except RunNotFound:
            return None
        return EventsTrimmed(first_seq) if after + 1 < first_seq else None

    async def _follow_thread(
        self, thread_key: str, place: _ThreadCursor, wanted: Callable[[StoredEvent], bool]
    ) -> AsyncGenerator[tuple[str, StoredEvent]]:
        with self._bus.subscribe(thread_key) as reader:
            while not self._bus.closing:
                reader.take()
                async with self._database.connection() as connection:
                    heads = await reading.thread_heads(connection, thread_key, place.ordinal, list(place.positions))
                given = False
                for head in heads:
                    reader.add(head.run_id)
                    async for event in self._rows_up_to(
                        head.run_id, place.positions.get(head.run_id, 0), head.last_seq
                    ):
                        place.positions[head.run_id] = event.seq
                        given = True
                        if wanted(event):
                            yield place.encode(), event
                    reader.cursors[head.run_id] = head.last_seq
                _forget_ended(place, heads)
                if not given:
                    await reader.wait(LOOK_EVERY_S)

    async def _rows_up_to(self, run_id: str, after: int, last: int) -> AsyncGenerator[StoredEvent]:
        while after < last:
            rows = await self._rows(run_id, after, ROWS_AT_ONCE)
            if not rows:
                return
            for event in rows:
                yield event
            after = rows[-1].seq

    async def _rows(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        async with self._database.connection() as connection:
            return await reading.read_events(connection, run_id, after, limit, most_chars=CHARS_AT_ONCE)

    async def _head(self, run_id: str) -> reading.RunHead:
        async with self._database.connection() as connection:
            return await reading.run_head(connection, run_id)


async def follow_run(
    bus: MemoryBus,
    run_id: str,
    after: int,
    rows: Callable[[int], Awaitable[list[StoredEvent]]],
    ended: Callable[[int], Awaitable[bool]],
    wanted: Callable[[StoredEvent], bool] = lambda _: True,
) -> AsyncGenerator[StoredEvent]:
    """The events of a run after a seq, each once and in order, until the run has ended.

    Args:
        rows: the next page of events behind a cursor, from the store.
        ended: whether the run is terminal and has no event behind a cursor.
    """
    cursor = after
    look_at_rows = True
    with bus.subscribe(run_id) as reader:
        reader.cursors[run_id] = cursor
        while not bus.closing:
            if look_at_rows:
                events = await rows(cursor)
                look_at_rows = is_full(events)
            else:
                handed, look_at_rows = await handed_over(reader, {run_id: cursor})
                events = [event for _, event in handed]
            closing = False
            for event in events:
                cursor = event.seq
                closing = event.type in TERMINAL_TYPES
                if wanted(event):
                    yield event
            reader.cursors[run_id] = cursor
            if (closing or not events) and not look_at_rows and await ended(cursor):
                return


def is_full(page: list[StoredEvent]) -> bool:
    """Whether there may be more behind a page of events."""
    return len(page) == ROWS_AT_ONCE or sum(len(event.body) for event in page) >= CHARS_AT_ONCE


async def handed_over(reader: Subscription, cursors: Mapping[str, int]) -> tuple[list[tuple[str, StoredEvent]], bool]:
    """Events that follow on from the cursors of their runs, and whether the rows have to be asked for more."""
    woken = await reader.wait(LOOK_EVERY_S)
    at = dict(cursors)
    follow: list[tuple[str, StoredEvent]] = []
    for run_id, event in reader.take():
        cursor = at.get(run_id, event.seq)
        if event.seq == cursor + 1:
            follow.append((run_id, event))
            at[run_id] = event.seq
        elif event.seq > cursor:  # something in between came another way
            return follow, True
    return follow, reader.stale() or not woken


def filter_of(types: frozenset[str] | None, deltas: bool) -> Callable[[StoredEvent], bool]:
    """Which events a reader wants: of these types only, or of all, with deltas or without."""
    if types is None and deltas:
        return lambda _: True
    return lambda event: (types is None or event.type in types) and (deltas or event.type not in DELTA_TYPES)


def refuse_ahead(run: reading.RunHead, after: int, loc: tuple[str, str]) -> None:
    """Raises Invalid for a cursor that no reader of the run can have."""
    if after > run.last_seq:
        raise Invalid(f"the run has {run.last_seq} events so far; the cursor {after} is ahead of it", loc)


def _forget_ended(place: _ThreadCursor, heads: list[reading.RunHead]) -> None:
    """Move the cursor past runs that can give no more events, so that it stays small however long the thread grows."""
    last = max((head.ordinal for head in heads), default=0)
    place.ordinal = max(place.ordinal, last)
    for run_id in place.positions.keys() - {head.run_id for head in heads}:
        del place.positions[run_id]  # it was deleted
    for head in heads:
        final = head.status in (RunStatus.COMPLETED, RunStatus.DEGRADED, RunStatus.CANCELLED)
        overtaken = head.status.terminal and head.ordinal < last
        if (final or overtaken) and place.positions.get(head.run_id, 0) >= head.last_seq:
            place.positions.pop(head.run_id, None)
        else:  # it may have had nothing to give yet: it is behind the ordinal now and must be asked for by name
            place.positions.setdefault(head.run_id, 0)
